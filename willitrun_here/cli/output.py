"""Printing results: JSON on stdout alone, people's text through a rich console, progress and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """Print one JSON document, indented for a terminal and compact for a pipe."""
    encoded = msgspec.json.encode(value)
    if sys.stdout.isatty():
        encoded = msgspec.json.format(encoded, indent=2)
    sys.stdout.buffer.write(encoded + b"\n")
    sys.stdout.flush()


def print_text(text: str) -> None:
    """Print text as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def console() -> Console:
    """Return the console of the terminal: width of the window, colour only there, NO_COLOR respected."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, needed only for tables

    return Console(highlight=False, soft_wrap=False)


@contextmanager
def waiting(message: str, *, quiet: bool) -> Iterator[None]:
    """Show that something is going on when it takes over half a second in a terminal; `quiet` shows nothing."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import

    from willitrun_here.render.terminal import progress  # noqa: PLC0415

    with progress(message, Console(stderr=True)):
        yield


def note(text: str) -> None:
    """Say something that is not the result."""
    sys.stderr.write(text + "\n")
