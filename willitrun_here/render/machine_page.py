"""A probed machine as one self-contained HTML file: memory, links, and the evidence behind every fact."""

from __future__ import annotations

from willitrun_here.render import topology
from willitrun_here.render.environment import render_template, safe
from willitrun_here.render.tables import Column, Row, Table
from willitrun_probe.machine import Gpu, Machine
from willitrun_probe.units import format_bytes, format_rate, format_seconds


def render(machine: Machine) -> str:
    """Return the page of one machine."""
    drawing = topology.draw(machine)
    return render_template(
        "machine.html",
        page_title=machine.name,
        description=_summary(machine),
        crumb="probe",
        observed=_observed(machine),
        findings=machine.findings,
        drawn_bars=_bars(machine),
        topology=None if drawing is None else safe(drawing),
        shown=[table for table in _tables(machine) if table.rows],
    )


def _summary(machine: Machine) -> str:
    counts: dict[str, int] = {}
    for gpu in machine.gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    gpus = ", ".join(name if n == 1 else f"{n}\u00d7 {name}" for name, n in counts.items()) or "no GPU"
    memory = format_bytes(machine.memory.total_bytes)
    return f"{gpus}; {machine.cpu.name or 'unknown processor'}; {memory} of memory."


def _observed(machine: Machine) -> str:
    parts = [f"Observed {machine.observed_at}", machine.os, machine.kernel, machine.virtualization]
    return " \u00b7 ".join(part for part in parts if part)


def _bars(machine: Machine) -> list[dict[str, object]]:
    rows = [
        _bar(
            gpu.name if len(machine.gpus) == 1 else f"GPU {index}: {gpu.name}", _gpu_parts(gpu), gpu.memory_total_bytes
        )
        for index, gpu in enumerate(machine.gpus)
    ]
    memory = machine.memory
    if memory.total_bytes is not None and memory.available_bytes is not None:
        used = max(0, memory.total_bytes - memory.available_bytes)
        parts = [("taken", "In use", used), ("headroom", "Available", memory.available_bytes)]
        rows.append(_bar("Host memory", parts, memory.total_bytes))
    return [row for row in rows if row is not None]


def _gpu_parts(gpu: Gpu) -> list[tuple[str, str, int]]:
    """Return who holds the memory: the largest processes by name, the rest together, the driver, and what is free."""
    if gpu.memory_total_bytes is None or gpu.memory_free_bytes is None:
        return []
    reserved = gpu.memory_reserved_bytes or 0
    taken = max(0, gpu.memory_total_bytes - gpu.memory_free_bytes - reserved)
    parts, named = [], 0
    holders = sorted((holder for holder in gpu.holders or () if holder.bytes), key=lambda holder: -(holder.bytes or 0))
    for holder, key in zip(holders, ("weights", "kv_cache", "recurrent", "compute"), strict=False):
        size = min(holder.bytes or 0, taken - named)
        named += size
        parts.append((key, holder.name or f"process {holder.pid}", size))
    parts.append(("taken", "Others" if parts else "In use", taken - named))
    parts.append(("runtime", "Reserved by the driver", reserved))
    parts.append(("headroom", "Free", gpu.memory_free_bytes))
    return [part for part in parts if part[2] > 0]


def _bar(name: str, parts: list[tuple[str, str, int]], total_bytes: int | None) -> dict[str, object] | None:
    if not parts or not total_bytes:
        return None
    drawn, start = [], 0
    for key, label, size in parts:
        x, width = start / total_bytes * 100, size / total_bytes * 100
        drawn.append(
            {"key": key, "label": label, "size": format_bytes(size), "x": round(x, 3), "width": round(width, 3)}
        )
        start += size
    free = parts[-1][2] if parts[-1][0] == "headroom" else 0
    return {
        "name": name,
        "caption": f"{format_bytes(free)} free of {format_bytes(total_bytes)}",
        "edge": 0,
        "parts": drawn,
    }


def _tables(machine: Machine) -> tuple[Table, ...]:
    return (
        _gpu_table(machine),
        _host_table(machine),
        _disk_table(machine),
        _engine_table(machine),
        _source_table(machine),
    )


def _columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name=name.lstrip("#"), numeric=name.startswith("#")) for name in names)


def _gpu_table(machine: Machine) -> Table:
    rows = tuple(
        Row(
            cells=(
                gpu.name,
                gpu.kind if gpu.usable else f"{gpu.kind}, unusable",
                format_bytes(gpu.memory_total_bytes),
                format_bytes(gpu.memory_free_bytes),
                format_rate(gpu.memory_bandwidth_bytes_per_s),
                gpu.compute_capability or gpu.gfx_target or "-",
                gpu.driver_version or "-",
                gpu.pci_address or "-",
                "yes" if gpu.visible else "no",
                gpu.sources.get("memory_total_bytes", "-"),
            )
        )
        for gpu in machine.gpus
    )
    columns = _columns(
        "GPU", "Kind", "#Memory", "#Free", "#Bandwidth", "Architecture", "Driver", "PCI address", "Visible", "Says"
    )
    return Table(title="GPUs", columns=columns, rows=rows, note="Says: the interface that reported the memory.")


def _host_table(machine: Machine) -> Table:
    cpu, memory = machine.cpu, machine.memory
    pairs = (
        ("Processor", cpu.name),
        ("Physical cores", cpu.physical_cores),
        ("Threads an engine may use", cpu.usable_threads),
        ("Processor quota", cpu.quota_cpus),
        ("Instruction sets", " ".join(cpu.flags) or None),
        ("NUMA nodes", len(cpu.numa_nodes) or None),
        ("Memory", format_bytes(memory.total_bytes)),
        ("Available", format_bytes(memory.available_bytes)),
        ("Limit of the control group", None if memory.limit_bytes is None else format_bytes(memory.limit_bytes)),
        (
            "Measured bandwidth",
            None if memory.bandwidth_bytes_per_s is None else format_rate(memory.bandwidth_bytes_per_s),
        ),
    )
    rows = tuple(Row(cells=(name, str(value))) for name, value in pairs if value is not None)
    return Table(title="Host", columns=(Column(name="Fact"), Column(name="Value", wraps=True)), rows=rows)


def _disk_table(machine: Machine) -> Table:
    rows = tuple(
        Row(
            cells=(
                disk.path,
                disk.purpose,
                disk.filesystem or "-",
                format_bytes(disk.free_bytes),
                format_rate(disk.read_bytes_per_s),
            )
        )
        for disk in machine.disks
    )
    return Table(title="Disks for models", columns=_columns("Path", "For", "File system", "#Free", "#Read"), rows=rows)


def _engine_table(machine: Machine) -> Table:
    rows = tuple(
        Row(cells=(engine.name, engine.version or "-", ", ".join(engine.backends) or "-", engine.path or "-"))
        for engine in machine.engines
    )
    return Table(title="Engines installed", columns=_columns("Engine", "Version", "Back ends", "Path"), rows=rows)


def _source_table(machine: Machine) -> Table:
    rows = tuple(
        Row(cells=(source.name, source.outcome, format_seconds(source.seconds), source.reason or "-"))
        for source in machine.sources
    )
    columns = (
        Column(name="Source"),
        Column(name="Outcome"),
        Column(name="Time", numeric=True),
        Column(name="Reason", wraps=True),
    )
    return Table(title="Evidence: what was asked", columns=columns, rows=rows)
