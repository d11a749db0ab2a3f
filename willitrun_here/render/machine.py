"""A machine and a diagnosis for the terminal: what is there, what is free, who said so, what is wrong."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from willitrun_here.doctor import Diagnosis, Problem, Severity, diagnose
from willitrun_here.render.terminal import suited
from willitrun_here.render.wording import printable
from willitrun_probe.machine import Gpu, Machine
from willitrun_probe.units import format_bytes, format_rate, format_seconds

_STYLES: dict[Severity, str] = {"broken": "bold red", "warning": "yellow", "note": "dim"}
_OUTCOMES = {"answered": "green", "absent": "dim", "failed": "red"}
_MOST_HOLDERS = 3


def show(machine: Machine, console: Console) -> None:
    """Print the whole machine with its evidence."""
    out = suited(console)
    system = ", ".join(part for part in (machine.os, machine.kernel, machine.virtualization) if part)
    out.print(Text(printable(machine.name), style="bold"), Text(printable(system)))
    out.print(_host(machine))
    if machine.gpus:
        out.print(_gpus(machine))
        for gpu in machine.gpus:
            _details(gpu, out)
    else:
        out.print("No GPU is present.")
    if machine.disks:
        out.print(_disks(machine))
    for engine in machine.engines:
        out.print(Text(printable(f"{engine.name} {engine.version or '(version unknown)'}  {engine.path or ''}")))
    diagnosis = diagnose(machine)
    out.print(_trials(diagnosis))
    for problem in diagnosis.problems:
        _print_problem(problem, out)


def show_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print what was tried, what is wrong and what to type."""
    out = suited(console)
    count = f"{diagnosis.gpus_usable} of {diagnosis.gpus_present} GPUs usable" if diagnosis.gpus_present else "no GPU"
    out.print(Text(f"{printable(diagnosis.machine)}: {count}", style="bold"))
    out.print(_trials(diagnosis))
    if not diagnosis.problems:
        out.print("Nothing is wrong.")
    for problem in diagnosis.problems:
        _print_problem(problem, out)


def _host(machine: Machine) -> Table:
    cpu, memory = machine.cpu, machine.memory
    table = Table.grid(padding=(0, 2))
    cores = f"{cpu.physical_cores} cores" if cpu.physical_cores else "cores unknown"
    threads = f", {cpu.usable_threads} threads for an engine" if cpu.usable_threads else ""
    table.add_row("CPU", printable(f"{cpu.name or 'unknown'}, {cores}{threads}"))
    table.add_row("", printable(" ".join(cpu.flags)))
    limit = f", limit {format_bytes(memory.limit_bytes)}" if memory.limit_bytes is not None else ""
    free = f"{format_bytes(memory.available_bytes)} available of {format_bytes(memory.total_bytes)}{limit}"
    table.add_row("RAM", free)
    if memory.bandwidth_bytes_per_s is not None:
        table.add_row("", f"{format_rate(memory.bandwidth_bytes_per_s)}, {_source(memory.sources)}")
    if cpu.product_rates:
        rates = (f"{one.weight_type} {format_rate(one.decode_bytes_per_s)}" for one in cpu.product_rates)
        table.add_row("measured", printable(", ".join(rates)))
    return table


def _source(sources: dict[str, str]) -> str:
    known = sources.get("bandwidth_bytes_per_s", "")
    return "measured by calibrate" if known == "micro-benchmark" else known or "source unknown"


def _gpus(machine: Machine) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, right in (("GPU", False), ("free", True), ("total", True), ("bandwidth", True), ("arch", False),
                         ("PCI", False), ("state", False)):  # fmt: skip
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for gpu in machine.gpus:
        state = "unusable" if not gpu.usable else "hidden" if not gpu.visible else "unified" if gpu.unified else "ok"
        table.add_row(
            Text(printable(gpu.name)),
            format_bytes(gpu.memory_free_bytes),
            format_bytes(gpu.memory_total_bytes),
            format_rate(gpu.memory_bandwidth_bytes_per_s),
            gpu.compute_capability or gpu.gfx_target or "-",
            gpu.pci_address or "-",
            state,
            style="red" if not gpu.usable else "dim" if not gpu.visible else "",
        )
    return table


def _details(gpu: Gpu, out: Console) -> None:
    """Print who holds memory and who said what, one line each."""
    holders = gpu.holders or ()
    for one in holders[:_MOST_HOLDERS]:
        where = f" in container {one.container}" if one.container else ""
        name = one.name or "a process"
        out.print(Text(printable(f"  {gpu.name}: {name} ({one.pid}) holds {format_bytes(one.bytes)}{where}")))
    if len(holders) > _MOST_HOLDERS:
        out.print(f"  and {len(holders) - _MOST_HOLDERS} more processes")
    if gpu.sources:
        by_source: dict[str, list[str]] = {}
        for field, source in gpu.sources.items():
            by_source.setdefault(source, []).append(field.removesuffix("_bytes").removesuffix("_bytes_per_s"))
        said = "; ".join(f"{source}: {', '.join(fields)}" for source, fields in by_source.items())
        out.print(Text(printable(f"  {gpu.name}: {said}"), style="dim"))


def _disks(machine: Machine) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("models", "folder", "file system", "free"):
        table.add_column(title, justify="right" if title == "free" else "left", overflow="fold")
    for disk in machine.disks:
        kind = f"{disk.filesystem or '-'}{' (network)' if disk.network else ''}"
        table.add_row(disk.purpose, Text(printable(disk.path)), kind, format_bytes(disk.free_bytes))
    return table


def _trials(diagnosis: Diagnosis) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("source", "outcome", "time", "reason"):
        table.add_column(title, justify="right" if title == "time" else "left", overflow="fold")
    for trial in diagnosis.trials:
        table.add_row(
            trial.source,
            Text(trial.outcome, style=_OUTCOMES[trial.outcome]),
            format_seconds(trial.seconds),
            Text(printable(trial.reason)),
        )
    return table


def _print_problem(problem: Problem, out: Console) -> None:
    about = f"{problem.device} ({problem.subject})" if problem.device else problem.subject
    line = Text(f"{problem.code}", style=_STYLES[problem.severity])
    line.append(printable(f"  {about}: {problem.reason}"), style="default")
    out.print(line)
    if problem.advice:
        out.print(Text(printable(f"    {problem.advice}"), style="dim"))
