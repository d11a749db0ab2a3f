"""The first tables.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "agent",
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=True),
        sa.Column("certificate_subject", sa.Text(), nullable=True),
        sa.Column("fingerprint_machine", sa.String(length=64), nullable=True),
        sa.Column("fingerprint_product", sa.String(length=64), nullable=True),
        sa.Column("enrolled_at", sa.Float(precision=53), nullable=False),
        sa.Column("revoked_at", sa.Float(precision=53), nullable=True),
        sa.Column("clone_of", sa.String(length=36), nullable=True),
        sa.Column("clone_seen_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("agent_id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_index("agent_fingerprint", "agent", ["fingerprint_machine"], unique=False)
    op.create_table(
        "facts",
        sa.Column("facts_hash", sa.String(length=71), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("facts_hash"),
    )
    op.create_table(
        "facts_seen",
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("facts_sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("facts_hash", sa.String(length=71), nullable=False),
        sa.Column("first_at", sa.Float(precision=53), nullable=False),
        sa.Column("last_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "facts_sequence"),
    )
    op.create_index("facts_seen_hash", "facts_seen", ["facts_hash"], unique=False)
    op.create_index("facts_seen_last", "facts_seen", ["agent_id", "last_at"], unique=False)
    op.create_table(
        "machine",
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("facts_hash", sa.String(length=71), nullable=False),
        sa.Column("shape_key", sa.String(length=64), nullable=True),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("free", sa.Text(), nullable=True),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("gpu_models", sa.Text(), nullable=True),
        sa.Column("gpu_count", sa.Integer(), nullable=True),
        sa.Column("vram_total_bytes", sa.BigInteger(), nullable=True),
        sa.Column("vram_free_bytes", sa.BigInteger(), nullable=True),
        sa.Column("ram_total_bytes", sa.BigInteger(), nullable=True),
        sa.Column("ram_free_bytes", sa.BigInteger(), nullable=True),
        sa.Column("finding_count", sa.Integer(), nullable=True),
        sa.Column("observed_at", sa.Float(precision=53), nullable=False),
        sa.Column("received_at", sa.Float(precision=53), nullable=False),
        sa.Column("skew_s", sa.Float(precision=53), nullable=False),
        sa.Column("spool_dropped", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id"),
    )
    op.create_index("machine_facts", "machine", ["facts_hash"], unique=False)
    op.create_index("machine_name", "machine", ["name", "agent_id"], unique=False)
    op.create_index("machine_received", "machine", ["received_at", "agent_id"], unique=False)
    op.create_index("machine_shape", "machine", ["shape_key"], unique=False)
    op.create_index("machine_vram", "machine", ["vram_total_bytes", "agent_id"], unique=False)
    op.create_table(
        "measured",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("quant", sa.Text(), nullable=True),
        sa.Column("measured_at", sa.Float(precision=53), nullable=False),
        sa.Column("decode_tokens_per_s", sa.Float(precision=53), nullable=True),
        sa.Column("expected_decode_tokens_per_s", sa.Float(precision=53), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("measured_agent", "measured", ["agent_id", "measured_at"], unique=False)
    op.create_table(
        "shape_plan",
        sa.Column("shape_key", sa.String(length=64), nullable=False),
        sa.Column("level", sa.String(length=72), nullable=False),
        sa.Column("question", sa.String(length=71), nullable=False),
        sa.Column("catalog_version", sa.String(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("computed_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("shape_key", "level", "question", "catalog_version"),
    )
    op.create_table(
        "token",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=True),
        sa.Column("revoked_at", sa.Float(precision=53), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256"),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("token")
    op.drop_table("shape_plan")
    op.drop_index("measured_agent", table_name="measured")
    op.drop_table("measured")
    op.drop_index("machine_vram", table_name="machine")
    op.drop_index("machine_shape", table_name="machine")
    op.drop_index("machine_received", table_name="machine")
    op.drop_index("machine_name", table_name="machine")
    op.drop_index("machine_facts", table_name="machine")
    op.drop_table("machine")
    op.drop_index("facts_seen_last", table_name="facts_seen")
    op.drop_index("facts_seen_hash", table_name="facts_seen")
    op.drop_table("facts_seen")
    op.drop_table("facts")
    op.drop_index("agent_fingerprint", table_name="agent")
    op.drop_table("agent")
