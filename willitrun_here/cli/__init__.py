"""The command line: parsing and exit codes only. Every command lives in a module of its own, imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

COMMANDS: Mapping[str, tuple[str, str]] = {
    "probe": ("willitrun_here.cli.probe", "This machine and the evidence: which source answered, what failed, why."),
    "check": ("willitrun_here.cli.check", "The whole answer for one model on a machine."),
    "recommend": ("willitrun_here.cli.recommend", "The best models for a machine, ranked."),
    "launch": ("willitrun_here.cli.launch", "The tuned command for one model; --exec starts it and checks it."),
    "compare": ("willitrun_here.cli.compare", "One model on several machines, side by side."),
    "feel": ("willitrun_here.cli.feel", "Play an answer at the speed this machine would give it."),
    "calibrate": ("willitrun_here.cli.calibrate", "Measure this machine once and keep the corrections."),
    "models": ("willitrun_here.cli.models", "The model catalog and the models on this machine."),
    "gpus": ("willitrun_here.cli.gpus", "The accelerator catalog."),
    "batch": ("willitrun_here.cli.batch", "JSON Lines in, JSON Lines out: one question a line."),
    "site": ("willitrun_here.cli.site", "Write linked pages for many models of a machine."),
    "report": ("willitrun_here.cli.report", "Report this machine into a fleet inventory."),
    "fleet": ("willitrun_here.cli.fleet", "The fleet inventory: serve, list, where, plan, import, export, collect."),
    "doctor": ("willitrun_here.cli.doctor", "What was tried, what is wrong, what to type."),
    "record": ("willitrun_here.cli.record", "A redacted, replayable recording of this machine."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the commands in the order people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry[0]), cmd_name)
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
