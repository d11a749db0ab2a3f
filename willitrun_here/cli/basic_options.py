"""The two options that nearly every command has, apart from those of a question, which import the estimator's."""

from __future__ import annotations

import click

MACHINE = click.option(
    "--machine",
    metavar="SPEC",
    default="here",
    help='"here", a saved probe file, a recording, or words: "2x NVIDIA GeForce RTX 3090, 64 GiB RAM".',
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, everything else on stderr.")
