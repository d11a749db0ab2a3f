"""The entry point: answers `--version` and `--help` at once, and turns errors into a message and an exit code."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from willitrun_here import __version__  # noqa: PLC0415 - nothing else is imported for this

        sys.stdout.write(f"willitrun-here {__version__}\n")
        return 0
    if arguments in (["--help"], ["-h"]):
        from pathlib import Path  # noqa: PLC0415 - nothing else is imported for this

        sys.stdout.write((Path(__file__).parent / "data" / "help.txt").read_text(encoding="utf-8"))
        return 0
    return run(arguments)


def run(arguments: list[str]) -> int:
    """Run a command; every known error becomes one message on stderr and its exit code."""
    import click  # noqa: PLC0415 - kept out of the two answers above

    from willitrun_here.cli import cli  # noqa: PLC0415

    try:
        result = cli.main(arguments, prog_name="willitrun-here", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        sys.stderr.write("\nstopped\n")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        return closed_pipe()
    except Exception as error:  # noqa: BLE001 - unknown ones are raised again below
        return report(error)
    return result if isinstance(result, int) else 0


def closed_pipe() -> int:
    """Leave quietly when the reader of a pipe is gone; the interpreter must not try to flush again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def report(error: Exception) -> int:
    """Print a known error's message and advice; anything else is a defect and is raised again."""
    from willitrun_here.errors import known_errors  # noqa: PLC0415 - only on failure

    if not isinstance(error, known_errors()):
        raise error
    advice = getattr(error, "advice", "")
    sys.stderr.write(f"willitrun-here: {error}\n" + (f"  {advice}\n" if advice else ""))
    return int(getattr(error, "exit_code", 4))


if __name__ == "__main__":
    sys.exit(main())
