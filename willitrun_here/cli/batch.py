"""`batch [FILE]`: JSON Lines in, JSON Lines out."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes; default: one per usable core.")
def batch(file: BinaryIO, jobs: int | None) -> None:
    """Answer one question a line, in order; errors are answers too and nothing stops.

    A line uses the option names with underscores: {"id": 1, "model": "llama-3.1-8b", "machine": "RTX 3090",
    "quant": "Q4_K_M", "context": 8192, "sections": ["plan", "speed"]}.
    """
    import os  # noqa: PLC0415

    from willitrun_here.stream import answered, blocks  # noqa: PLC0415 - imports the estimator

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in answered(blocks(file), jobs=jobs or cores):
        sys.stdout.buffer.write(b"\n".join([*group, b""]))
        sys.stdout.buffer.flush()
