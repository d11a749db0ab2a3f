"""The tables, once, for SQLite and PostgreSQL. Times are Unix seconds, documents are JSON text, ids are text."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

agent = Table(
    "agent",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("token_sha256", String(64), unique=True),
    Column("certificate_subject", Text),
    Column("fingerprint_machine", String(64)),
    Column("fingerprint_product", String(64)),
    Column("enrolled_at", Float(53), nullable=False),
    Column("revoked_at", Float(53)),
    Column("clone_of", String(36)),
    Column("clone_seen_at", Float(53)),
    Index("agent_fingerprint", "fingerprint_machine"),
)

machine = Table(
    "machine",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("name", Text),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("facts_hash", String(71), nullable=False),
    Column("shape_key", String(64)),
    Column("labels", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("free", Text),
    Column("agent_version", Text, nullable=False),
    Column("gpu_models", Text),
    Column("gpu_count", Integer),
    Column("vram_total_bytes", BigInteger),
    Column("vram_free_bytes", BigInteger),
    Column("ram_total_bytes", BigInteger),
    Column("ram_free_bytes", BigInteger),
    Column("finding_count", Integer),
    Column("observed_at", Float(53), nullable=False),
    Column("received_at", Float(53), nullable=False),
    Column("skew_s", Float(53), nullable=False),
    Column("spool_dropped", BigInteger, nullable=False),
    Index("machine_received", "received_at", "agent_id"),
    Index("machine_shape", "shape_key"),
    Index("machine_name", "name", "agent_id"),
    Index("machine_vram", "vram_total_bytes", "agent_id"),
    Index("machine_facts", "facts_hash"),
)

facts = Table(
    "facts",
    metadata,
    Column("facts_hash", String(71), primary_key=True),
    Column("document", Text, nullable=False),
)

facts_seen = Table(
    "facts_seen",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("facts_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("facts_hash", String(71), nullable=False),
    Column("first_at", Float(53), nullable=False),
    Column("last_at", Float(53), nullable=False),
    Index("facts_seen_last", "agent_id", "last_at"),
    Index("facts_seen_hash", "facts_hash"),
)

shape_plan = Table(
    "shape_plan",
    metadata,
    Column("shape_key", String(64), primary_key=True),
    Column("level", String(72), primary_key=True),
    Column("question", String(71), primary_key=True),
    Column("catalog_version", String(64), primary_key=True),
    Column("document", Text, nullable=False),
    Column("computed_at", Float(53), nullable=False),
)

measured = Table(
    "measured",
    metadata,
    Column("run_id", String(36), primary_key=True),
    Column("agent_id", String(36), nullable=False),
    Column("model", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("quant", Text),
    Column("measured_at", Float(53), nullable=False),
    Column("decode_tokens_per_s", Float(53)),
    Column("expected_decode_tokens_per_s", Float(53)),
    Column("document", Text, nullable=False),
    Index("measured_agent", "agent_id", "measured_at"),
)

token = Table(
    "token",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53)),
    Column("revoked_at", Float(53)),
    Column("note", Text, nullable=False),
)
