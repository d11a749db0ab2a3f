"""`gpus list` and `gpus show`: the accelerator catalog."""

from __future__ import annotations

import click

from willitrun_here.cli.basic_options import JSON
from willitrun_here.cli.output import console, print_json


@click.group()
def gpus() -> None:
    """Look into the accelerator catalog."""


@gpus.command("list")
@click.option("--vendor", type=click.Choice(("nvidia", "amd", "intel", "apple")), help="One vendor's only.")
@JSON
def list_gpus(vendor: str | None, as_json: bool) -> None:
    """List the accelerators with memory, bandwidth and family."""
    from willitrun_catalog.shipped import datasheets  # noqa: PLC0415

    sheets = [sheet for sheet in datasheets() if vendor in (None, sheet.vendor)]
    if as_json:
        print_json(sheets)
        return
    from rich.table import Table  # noqa: PLC0415

    from willitrun_probe.units import format_bytes, format_rate  # noqa: PLC0415

    table = Table(box=None, header_style="bold")
    for title in ("GPU", "memory", "bandwidth", "family"):
        table.add_column(title, justify="right" if title in {"memory", "bandwidth"} else "left")
    for sheet in sheets:
        table.add_row(
            sheet.name, format_bytes(sheet.memory_bytes), format_rate(sheet.bandwidth_bytes_per_s), sheet.family
        )
    console().print(table)


@gpus.command("show")
@click.argument("name")
@JSON
def show_gpu(name: str, as_json: bool) -> None:
    """Show one data sheet with its sources; the name is matched forgivingly."""
    from willitrun_catalog.find import find_datasheet  # noqa: PLC0415

    sheet = find_datasheet(name)
    if as_json:
        print_json(sheet)
        return
    from msgspec import structs  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, show_header=False)
    for field, value in structs.asdict(sheet).items():
        if value not in (None, (), False):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            table.add_row(field.replace("_", " "), shown)
    console().print(table)
