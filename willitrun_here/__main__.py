"""The entry point: answers `--version` and `--help` at once, and turns errors into a message and an exit code."""

from __future__ import annotations

import gc
import io
import os
import sys

FEWEST_COLLECTED = 100_000
"""New containers before the garbage collector looks for cycles. A command makes its answer of values without cycles;
at the usual 700 the collector takes a twentieth of its time."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code; without arguments given, as the program that this process is."""
    if argv is None:
        collect_seldom()
    never_fail_to_print()
    try:
        code = at_once(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        code = closed_pipe()
    if argv is None:
        gc.freeze()  # the interpreter collects while it ends; nothing is left that needs it
    return code


def collect_seldom() -> None:
    """Let the garbage collector look for cycles seldom, as long as this process runs."""
    gc.set_threshold(FEWEST_COLLECTED, 10, 10)


def never_fail_to_print() -> None:
    """Print a question mark for what the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def at_once(arguments: list[str]) -> int:
    """Answer what needs no import, else run the command."""
    if arguments == ["--version"]:
        from willitrun_here import __version__  # noqa: PLC0415 - nothing else is imported for this

        sys.stdout.write(f"willitrun-here {__version__}\n")
        sys.stdout.flush()
        return 0
    if arguments in (["--help"], ["-h"]):
        # Nothing is imported for this, not even pathlib: it takes as long as the interpreter itself.
        with open(os.path.join(os.path.dirname(__file__), "data", "help.txt"), encoding="utf-8") as text:  # noqa: PTH118,PTH120,PTH123
            sys.stdout.write(text.read())
        sys.stdout.flush()
        return 0
    return run(arguments)


def run(arguments: list[str]) -> int:
    """Run a command; every known error becomes one message on stderr and its exit code."""
    from willitrun_here.cli import PLAIN  # noqa: PLC0415 - kept out of the two answers above

    try:
        code = run_plain(arguments[0], arguments[1:]) if arguments and arguments[0] in PLAIN else None
        return with_click(arguments) if code is None else code
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130
    except (BrokenPipeError, SystemExit):
        # click turns a closed pipe into exit code 1, which here would say that nothing runs.
        return closed_pipe()
    except Exception as error:  # noqa: BLE001 - unknown ones are raised again below
        return report(error)


def run_plain(name: str, words: list[str]) -> int | None:
    """Run a command whose line can be read without click; None where it cannot."""
    from importlib import import_module  # noqa: PLC0415 - as said above

    from willitrun_here.cli import COMMANDS  # noqa: PLC0415
    from willitrun_here.cli.arguments import read_plainly  # noqa: PLC0415

    module = import_module(COMMANDS[name][0])
    values = read_plainly(module.PARAMETERS, words)
    if values is None:
        return None
    code: int = getattr(module, name)(**values)
    sys.stdout.flush()
    return code


def with_click(arguments: list[str]) -> int:
    """Run a command as click reads it; its own errors and ways to end become exit codes."""
    import click  # noqa: PLC0415 - takes longer to import than a probe runs

    from willitrun_here.cli.group import cli  # noqa: PLC0415

    try:
        result = cli.main(arguments, prog_name="willitrun-here", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0


def closed_pipe() -> int:
    """Leave quietly when the reader of a pipe is gone; the interpreter must not try to flush again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return 0


def report(error: Exception) -> int:
    """Print a known error's message and advice; anything else but a file's failure is a defect and is raised again."""
    from willitrun_here.errors import known_errors  # noqa: PLC0415 - only on failure

    if isinstance(error, OSError) and not isinstance(error, known_errors()):
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"willitrun-here: {where}{error.strerror or error}\n")
        return 4
    if not isinstance(error, known_errors()):
        raise error
    advice = getattr(error, "advice", "")
    sys.stderr.write(f"willitrun-here: {error}\n" + (f"  {advice}\n" if advice else ""))
    return int(getattr(error, "exit_code", 4))


if __name__ == "__main__":
    sys.exit(main())
