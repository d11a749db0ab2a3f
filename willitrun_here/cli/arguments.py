"""Options as values, and command lines of them read without click, which takes longer to import than a probe runs.

`options.py` makes click's options of the same values. Whatever is not plainly right (`--help`, a mistake, a spelling
that only click knows) is left to click, so that messages have one source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from willitrun_probe.units import parse_bytes

MOST_TOKENS = 2**31
MOST_COUNT = 2**20
MOST_BYTES = 2**60
MOST_DIGITS = 12


class Choice(Struct, frozen=True):
    """One of some words."""

    words: tuple[str, ...]

    def read(self, text: str) -> str:
        """Return the word; raises ValueError for another one."""
        if text not in self.words:
            raise ValueError(text)
        return text


class Whole(Struct, frozen=True):
    """A whole number within bounds."""

    least: int
    most: int | None = None

    def read(self, text: str) -> int:
        """Return the number; raises ValueError for another one."""
        number = int(text)
        if number < self.least or (self.most is not None and number > self.most):
            raise ValueError(text)
        return number


class Seconds(Struct, frozen=True):
    """A number of seconds within bounds; `nan` is none."""

    least: float
    most: float

    def read(self, text: str) -> float:
        """Return the number; raises ValueError for another one."""
        number = float(text)
        if not self.least <= number <= self.most:  # not so for nan
            raise ValueError(text)
        return number


class Path(Struct, frozen=True):
    """A path that click looks at before the command runs."""

    writable: bool = False
    folder: bool = False

    def read(self, text: str) -> str:
        """Leave it to click."""
        raise ValueError(text)


class Reader(Struct, frozen=True):
    """A value in a notation of its own."""

    word: str
    """What help calls it."""
    read: Callable[[str], Any]
    """Raises ValueError with what would be right."""


def read_tokens(text: str) -> int:
    """Read a number of tokens: `8192`, `32k`, `128K`, `1M`; raises ValueError."""
    factor = {"k": 1024, "m": 1024 * 1024}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    if not is_count(digits) or not 0 < int(digits) * factor <= MOST_TOKENS:
        message = f"{text!r} is not a number of tokens; write for example 8192 or 32k"
        raise ValueError(message)
    return int(digits) * factor


def read_size(text: str) -> int:
    """Read a number of bytes: `512MiB`, `2GiB`, `1000000000`; raises ValueError."""
    try:
        size = parse_bytes(text)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    if size > MOST_BYTES:
        message = f"{text!r} is more memory than any machine has"
        raise ValueError(message)
    return size


def read_count(text: str) -> int | str:
    """Read a count, `all` or `auto`; raises ValueError."""
    if text in {"all", "auto"}:
        return text
    if not is_count(text):
        message = f"{text!r} is neither a count nor 'all' or 'auto'"
        raise ValueError(message)
    return int(text)


def is_count(text: str) -> bool:
    """Tell whether a text is a few plain digits; `isdigit` alone takes those of every script."""
    return len(text) <= MOST_DIGITS and text.isascii() and text.isdigit()


TEXT = Reader("text", str)
NUMBER = Reader("float", float)
TOKENS = Reader("tokens", read_tokens)
SIZE = Reader("bytes", read_size)
COUNT_OR_ALL = Reader("N|all|auto", read_count)
POSITIVE = Whole(1, MOST_COUNT)

Kind = Choice | Whole | Seconds | Path | Reader


class Option(Struct, frozen=True):
    """`--flag VALUE`, or a bare `--flag` where `kind` is None."""

    flag: str
    kind: Kind | None = TEXT
    default: Any = None
    help: str | None = None
    name: str = ""
    """What the command calls it, where that is not the flag with underscores."""
    metavar: str | None = None
    show_default: bool = False

    @property
    def parameter(self) -> str:
        """The name of the command's parameter."""
        return self.name or self.flag[2:].replace("-", "_")


class Argument(Struct, frozen=True):
    """A word that stands without a flag."""

    parameter: str


Parameter = Option | Argument

MACHINE = Option(
    "--machine",
    default="here",
    metavar="SPEC",
    help='"here", a saved probe file, a recording, or words: "2x NVIDIA GeForce RTX 3090, 64 GiB RAM".',
)
JSON = Option("--json", None, False, "Print JSON on stdout, everything else on stderr.", "as_json")


def read_plainly(parameters: Sequence[Parameter], words: Sequence[str]) -> dict[str, Any] | None:
    """Return the parameters of a command line, None where click has to look at it."""
    options = {one.flag: one for one in parameters if isinstance(one, Option)}
    arguments = [one.parameter for one in parameters if isinstance(one, Argument)]
    values = {one.parameter: False if one.kind is None else one.default for one in options.values()}
    given: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            given.append(word)
        elif not read_option(options, word, rest, values):
            return None
    if len(given) != len(arguments) or not all(given):
        return None
    return values | dict(zip(arguments, given, strict=True))


def read_option(options: Mapping[str, Option], word: str, rest: Iterator[str], values: dict[str, Any]) -> bool:
    """Read one option and its value into `values`; tells whether it was plainly right."""
    flag, equals, value = word.partition("=")
    option = options.get(flag)
    if option is None:
        return False
    if option.kind is None:
        values[option.parameter] = True
        return not equals
    if not equals:
        value = next(rest, "-")
    if value.startswith("-"):
        return False
    try:
        values[option.parameter] = option.kind.read(value)
    except (ValueError, OverflowError):
        return False
    return True
