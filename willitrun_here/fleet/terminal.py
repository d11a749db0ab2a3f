"""Tables of the fleet for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from willitrun_probe.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from willitrun_here.fleet.cluster import ClusterPlan
    from willitrun_here.fleet.query import MachineRow
    from willitrun_here.fleet.where import Where

NAMES_SHOWN = 10
WORDS = {"runs-now": "now", "runs-if-idle": "if idle", "does-not-run": "no", "unknown": "unknown"}


def machine_table(rows: Sequence[MachineRow]) -> Table:
    """Build the table of machines."""
    table = Table("machine", "GPUs", "GPU memory", "free", "RAM", "free", "seen", "findings")
    for row in rows:
        table.add_row(
            _plain(row.name), _plain(row.gpus), format_bytes(row.vram_total_bytes),
            format_bytes(row.vram_free_bytes), format_bytes(row.ram_total_bytes), format_bytes(row.ram_free_bytes),
            f"{format_seconds(row.last_seen_s)} ago ({row.status})", str(row.findings or 0),
        )  # fmt: skip
    return table


def where_table(answer: Where, limit: int) -> Table:
    """Build the table that answers which machines run a model."""
    counted = ", ".join(f"{WORDS[word]}: {count}" for word, count in answer.counts.items())
    title = f"{escape(answer.model)} ({counted or 'no machine'})"
    table = Table("machine", "runs", "because", "plan", "tokens/s", title=title)
    for row in answer.machines[:limit]:
        plan = f"{row.quant}, {row.engine}, {row.context_tokens}" if row.quant is not None else "-"
        speed = "-" if row.decode_tokens_per_s is None else f"{row.decode_tokens_per_s:.1f}"
        table.add_row(_plain(row.name), WORDS[row.verdict], escape(row.reason), escape(plan), speed)
    return table


def where_commands(answer: Where, limit: int) -> str:
    """Write each command once, on one line to copy, below the machines that it is for."""
    machines: dict[str, list[str]] = {}
    for row in answer.machines[:limit]:
        if row.command and row.verdict.startswith("runs"):
            machines.setdefault(printable(row.command), []).append(printable(row.name or row.agent_id))
    return "\n".join(f"# {listed(names)}\n{command}" for command, names in machines.items())


def listed(names: Sequence[str]) -> str:
    """List the first few names and say how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def cluster_text(answer: ClusterPlan) -> str:
    """Write a plan over several machines as text to copy from."""
    lines = [answer.model]
    if answer.single:
        lines.append(f"runs on one machine alone: {listed([printable(name) for name in answer.single])}")
    for group in answer.groups:
        lines += ["", f"{group.launcher}: {len(group.machines)} machines, {group.gpus} GPUs, {group.quant}, "]
        lines[-1] += (
            f"context {group.context_tokens}, tensor {group.tensor_parallel} x pipeline {group.pipeline_parallel}"
        )
        lines.append(f"  {printable(group.message)}")
        for command in group.commands:
            lines += [f"  # {printable(command.machine)} ({command.role})", f"  {printable(command.shell)}"]
        lines += [f"  checked: {text}" for text in group.checks]
        lines += [f"  note: {text}" for text in group.notes]
    lines += ["", *(f"not possible: {printable(reason)}" for reason in answer.reasons)] if answer.reasons else []
    return "\n".join(lines)


def printable(text: str) -> str:
    """Replace control characters: names come from machines that may be hostile."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _plain(text: str | None) -> str:
    return "-" if not text else escape(printable(text))
