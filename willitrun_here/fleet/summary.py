"""What the tables keep of a machine's facts in columns: totals, names and the key of its hardware shape."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import msgspec
from msgspec import Struct

from willitrun_here.fleet.document import State
from willitrun_here.fleet.facts import gpu_keys, with_state
from willitrun_probe.identity import shape_hash
from willitrun_probe.machine import Machine

LARGEST_INTEGER = 2**63 - 1


class FactsSummary(Struct, frozen=True, kw_only=True):
    """Columns that follow from facts alone. `gpu_keys` and totals are in the order of the facts."""

    name: str
    shape_key: str
    gpu_keys: tuple[str, ...]
    gpu_models: str
    gpu_count: int
    vram_total_bytes: int | None
    ram_total_bytes: int | None
    finding_count: int


def summarize(document: str) -> FactsSummary:
    """Summarize a stored facts document."""
    machine = machine_of(document, State(), "")
    models = Counter(gpu.name for gpu in machine.gpus)
    return FactsSummary(
        name=machine.name,
        shape_key=shape_key(machine),
        gpu_keys=gpu_keys(machine),
        gpu_models="; ".join(f"{count}x {name}" if count > 1 else name for name, count in sorted(models.items())),
        gpu_count=len(machine.gpus),
        vram_total_bytes=total(gpu.memory_total_bytes for gpu in machine.gpus if not gpu.unified),
        ram_total_bytes=machine.memory.total_bytes,
        finding_count=len(machine.findings),
    )


def machine_of(document: str, state: State, observed_at: str) -> Machine:
    """Return the machine of a stored facts document with the free memory of a state."""
    raw = msgspec.json.decode(document)
    facts = msgspec.convert({**raw["machine"], "observed_at": observed_at}, Machine)
    return with_state(facts, state, observed_at)


def shape_key(machine: Machine) -> str:
    """Return the key of the facts that change a plan, with the order in which engines will see the GPUs.

    Computed here and not taken from the report: agents of several versions must agree.
    """
    order = "|".join(f"{gpu.pci_id or gpu.name}:{gpu.memory_total_bytes}" for gpu in machine.gpus)
    return f"{shape_hash(machine)}-{hashlib.sha256(order.encode()).hexdigest()[:8]}"


def free_list(keys: tuple[str, ...], state: State) -> str:
    """Return free RAM and free memory per GPU in the facts' order, as a JSON list with null for unknown."""
    free = {gpu.key: gpu.memory_free_bytes for gpu in state.gpus}
    return msgspec.json.encode([state.ram_free_bytes, *(free.get(key) for key in keys)]).decode()


def total(values: Any) -> int | None:
    """Sum what is known, within what a column holds; None when nothing is."""
    known = [value for value in values if value is not None]
    return min(sum(known), LARGEST_INTEGER) if known else None
