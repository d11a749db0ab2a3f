"""Write the documents that follow from the code, or with --check tell whether they are up to date.

- `docs/cli.md`: every command's help
- `willitrun_here/data/help.txt`: the top-level help, answered without importing anything
- `docs/schemas/*.json`: JSON Schemas of what others script against
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
import msgspec

from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_here.cli.group import cli
from willitrun_here.machines import MachineWords
from willitrun_probe.machine import Machine

ROOT = Path(__file__).parent.parent


def help_text(command: click.Command, path: tuple[str, ...]) -> str:
    """Return the help of a command as a terminal of 100 columns shows it."""
    context = click.Context(command, info_name=" ".join(path), terminal_width=100, max_content_width=100)
    return command.get_help(context).rstrip() + "\n"


def commands(group: click.Group, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    """Return a group's commands, nested ones behind their parent."""
    found: list[tuple[tuple[str, ...], click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            sys.exit(f"{' '.join((*path, name))} is listed and cannot be imported")
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
    return found


def cli_reference() -> str:
    """Return docs/cli.md."""
    parts = ["# Commands\n", "Written by `scripts/write_docs.py` from the code.\n"]
    parts.append(f"```\n{help_text(cli, ('willitrun-here',))}```\n")
    for path, command in commands(cli, ("willitrun-here",)):
        parts.append(f"## {' '.join(path[1:])}\n\n```\n{help_text(command, path)}```\n")
    return "\n".join(parts)


def schema(kind: object) -> str:
    """Return a JSON Schema as text."""
    return json.dumps(msgspec.json.schema(kind), indent=2, ensure_ascii=False) + "\n"


def documents() -> dict[Path, str]:
    """Return every generated file and its text."""
    return {
        ROOT / "docs" / "cli.md": cli_reference(),
        ROOT / "willitrun_here" / "data" / "help.txt": help_text(cli, ("willitrun-here",)),
        ROOT / "docs" / "schemas" / "machine.json": schema(Machine),
        ROOT / "docs" / "schemas" / "check.json": schema(Answer),
        ROOT / "docs" / "schemas" / "request.json": schema(Request),
        ROOT / "docs" / "schemas" / "machine-words.json": schema(MachineWords),
    }


def main() -> int:
    """Write or check."""
    os.environ.pop("COLUMNS", None)
    checking = "--check" in sys.argv[1:]
    stale = []
    for path, text in documents().items():
        if checking and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(str(path.relative_to(ROOT)))
        elif not checking:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of date: {', '.join(stale)}; run: python scripts/write_docs.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
