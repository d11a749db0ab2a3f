"""`compare MODEL --machine A --machine B …`: one model side by side on several machines."""

from __future__ import annotations

from typing import Any

import click

from willitrun_here.cli.basic_options import JSON
from willitrun_here.cli.options import question
from willitrun_here.cli.output import console, print_json, print_text
from willitrun_here.cli.question import request
from willitrun_here.errors import UsageError


@click.command()
@click.argument("model")
@click.option("--machine", "machines", multiple=True, metavar="SPEC", help="A machine; give it several times.")
@question
@click.option("--format", "shape", type=click.Choice(("text", "json", "markdown", "html")), default="text")
@JSON
def compare(model: str, machines: tuple[str, ...], shape: str, as_json: bool, **options: Any) -> int:
    """Answer the same question for several machines, also for ones you do not own."""
    asked = request(options)
    if len(machines) < 2:  # noqa: PLR2004 - one machine is `check`
        raise UsageError(
            "compare needs at least two machines", "Give --machine twice: --machine here --machine 'RTX 5090'."
        )
    from willitrun_here.ask import ask, open_model  # noqa: PLC0415
    from willitrun_here.machines import open_machine  # noqa: PLC0415

    spec = open_model(model)
    sections = frozenset({"plan", "speed", "context", "score", "tags"})
    answers = [ask(open_machine(one), spec, asked, sections=sections, commands=False) for one in machines]  # type: ignore[arg-type]
    if as_json or shape == "json":
        print_json({"schema": "willitrun.compare/1", "answers": answers})
    elif shape == "text":
        from willitrun_here.render.text import render_comparison  # noqa: PLC0415

        render_comparison(answers, console())
    elif shape == "markdown":
        from willitrun_here.render.markdown import render_comparison as render_markdown  # noqa: PLC0415

        print_text(render_markdown(answers))
    else:
        from willitrun_here.render.lists import render_comparison as render_html  # noqa: PLC0415

        print_text(render_html(answers))
    return 0 if any(one.fit.status != "too-large" for one in answers) else 1
