"""`site DIR`: linked pages for many models on one or several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from willitrun_here.cli.basic_options import JSON
from willitrun_here.cli.options import question
from willitrun_here.cli.output import note, print_json, print_text
from willitrun_here.cli.question import request


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--machine", "machines", multiple=True, metavar="SPEC", help="A machine; give it several times.")
@click.option(
    "--model", "names", multiple=True, metavar="MODEL", help="A model; without any, the best of each machine."
)
@click.option("--limit", type=click.IntRange(min=1), default=10, help="How many of the best models per machine.")
@question
@JSON
def site(
    folder: Path, machines: tuple[str, ...], names: tuple[str, ...], limit: int, as_json: bool, **options: Any
) -> int:
    """Write a folder of pages: one per answer, one per machine, one per model, and an index that links them."""
    asked = request(options)
    import sys  # noqa: PLC0415 - only for the progress bar

    from willitrun_here.ask import ask, open_model  # noqa: PLC0415 - after the options were found sound
    from willitrun_here.machines import open_machine  # noqa: PLC0415
    from willitrun_here.rank import rank  # noqa: PLC0415
    from willitrun_here.render.site import write  # noqa: PLC0415

    opened = [open_machine(spec) for spec in machines or ("here",)]
    wanted = list(names)
    if not wanted:
        ranked = [row.model.name for machine in opened for row in rank(machine, asked, limit=limit)]
        wanted = list(dict.fromkeys(ranked))
    models = [open_model(name) for name in wanted]
    pairs = [(machine, model) for machine in opened for model in models]
    with click.progressbar(pairs, label="Answering", file=sys.stderr) as bar:
        answers = [ask(machine, model, asked) for machine, model in bar]
    files = write(folder, answers)
    if as_json:
        print_json({"schema": "willitrun.site/1", "files": [str(file) for file in files]})
    else:
        print_text(str(files[0]))
    if not answers:
        note("No model of the catalog runs on these machines within these limits: the index is empty.")
    return 0 if answers else 1
