"""The two options that nearly every command has, for commands that are written with click's decorators."""

from __future__ import annotations

from willitrun_here.cli import arguments
from willitrun_here.cli.options import option

MACHINE = option(arguments.MACHINE)
JSON = option(arguments.JSON)
