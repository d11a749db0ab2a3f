"""What a terminal can show: plain ASCII where that is all it has, and a sign of life when something takes long."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TextIO

from rich.console import Console
from rich.text import Text

ASCII = str.maketrans(
    {
        "\u2013": "-",
        "\u2014": "-",
        "\u00d7": "x",
        "\u2192": ">",
        "\u2022": "*",
        "\u00b7": "|",
        "\u25b8": ">",
        "\u2265": ">",
        "\u2264": "<",
        "\u2026": "~",
    }
)
"""One sign for one sign, so that columns stay where they are."""


class AsciiWriter(io.TextIOBase):
    """Pass text on in ASCII; what has no likeness becomes a question mark."""

    def __init__(self, inner: IO[str]) -> None:
        self._inner = inner

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Tell rich to draw tables in ASCII."""
        return "ascii"

    def write(self, text: str) -> int:
        """Write the translated text."""
        return self._inner.write(text.translate(ASCII).encode("ascii", "replace").decode("ascii"))

    def flush(self) -> None:
        """Flush what is written to."""
        self._inner.flush()


def suited(console: Console) -> Console:
    """Return the console, or one that writes ASCII where the encoding of its file is no Unicode."""
    if not console.options.ascii_only or isinstance(console.file, AsciiWriter):
        return console
    writer: TextIO = AsciiWriter(console.file)  # type: ignore[assignment]
    return Console(file=writer, width=console.width, force_terminal=console.is_terminal, no_color=console.no_color)


@contextmanager
def progress(message: str, console: Console, *, after_s: float = 0.5) -> Iterator[None]:
    """Show a spinner with a message while the block runs, once it has run for `after_s` seconds; nothing in a pipe."""
    if not console.is_terminal:
        yield
        return
    status = console.status(Text(message))
    timer = threading.Timer(after_s, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
