"""The group of all commands, for click. A command's module is imported when that command runs."""

from __future__ import annotations

import importlib

import click

from willitrun_here.cli import COMMANDS, PLAIN
from willitrun_here.cli.options import command as built


class LazyGroup(click.Group):
    """A group that imports a command only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the commands in the order people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(entry[0])
        if cmd_name in PLAIN:
            return built(cmd_name, getattr(module, cmd_name), module.PARAMETERS)
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="willitrun-here", prog_name="willitrun-here", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> int | None:
    """Tell what this machine can run, how well, and what to type.

    Without a command: this machine, then the best models for it.
    """
    if ctx.invoked_subcommand is None:
        from willitrun_here.cli.recommend import show_machine_and_best  # noqa: PLC0415 - only for the bare command

        return show_machine_and_best()
    return None
