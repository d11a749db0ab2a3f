"""What click makes of options and commands that are written down as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from willitrun_here.cli import arguments
from willitrun_here.cli.arguments import Argument, Choice, Kind, Option, Parameter, Path, Reader, Seconds, Whole

F = TypeVar("F", bound=Callable[..., Any])


class Read(click.ParamType[Any]):
    """A value in a notation of its own."""

    def __init__(self, reader: Reader) -> None:
        self.name = reader.word
        self.read = reader.read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the value or fail with the accepted forms."""
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SecondsRange(click.FloatRange):
    """A number of seconds within bounds; `nan` is none."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number or fail with the bounds."""
        seconds: float = super().convert(value, param, ctx)
        if seconds != seconds:  # noqa: PLR0124 - nan alone differs from itself
            self.fail("nan is not a number of seconds", param, ctx)
        return seconds


def type_of(kind: Kind) -> click.ParamType[Any]:
    """Return click's type for a kind of value."""
    made: click.ParamType[Any]
    match kind:
        case Choice(words):
            made = click.Choice(words)
        case Whole(least, most):
            made = click.IntRange(least, most)
        case Seconds(least, most):
            made = SecondsRange(least, most)
        case Path(writable, folder):
            made = click.Path(dir_okay=folder, writable=writable)
        case arguments.TEXT:
            made = click.STRING
        case arguments.NUMBER:
            made = click.FLOAT
        case _:
            made = Read(kind)
    return made


def keywords(option: Option) -> dict[str, Any]:
    """Return what click's option is made with."""
    said: dict[str, Any] = {"help": option.help}
    if option.kind is None:
        return said | {"is_flag": True}
    said |= {"type": type_of(option.kind), "metavar": option.metavar, "show_default": option.show_default}
    return said if option.default is None else said | {"default": option.default}


def option(given: Option) -> Callable[[F], F]:
    """Return the decorator that adds an option to a command."""
    return click.option(given.flag, given.parameter, **keywords(given))


TOKENS, SIZE, COUNT_OR_ALL = Read(arguments.TOKENS), Read(arguments.SIZE), Read(arguments.COUNT_OR_ALL)


def question(command: F) -> F:
    """Add the options of a question to a command."""
    from willitrun_here.cli.question import QUESTION  # noqa: PLC0415 - needs the estimator's Request

    for one in reversed(QUESTION):
        command = option(one)(command)
    return command


def command(name: str, function: Callable[..., Any], parameters: Sequence[Parameter]) -> click.Command:
    """Return a command of parameters that are values; its help is the function's docstring."""
    made: list[click.Parameter] = [
        click.Argument([one.parameter])
        if isinstance(one, Argument)
        else click.Option([one.flag, one.parameter], **keywords(one))
        for one in parameters
    ]
    return click.Command(name, callback=function, params=made, help=function.__doc__)
