"""`recommend`: ranked models for a machine; and what the bare command shows."""

from __future__ import annotations

from typing import Any

from willitrun_here.cli.arguments import JSON, MACHINE, Choice, Option, Whole
from willitrun_here.cli.output import console, note, print_json, print_text
from willitrun_here.cli.question import QUESTION, request

PARAMETERS = (
    MACHINE,
    *QUESTION,
    Option("--limit", Whole(1), 10, "How many models to show."),
    Option("--all", None, help="Show every model that runs.", name="everything"),
    Option("--local", None, help="Rank only models that are already on this machine."),
    Option("--format", Choice(("text", "json", "html")), "text", "How to print.", "shape"),
    JSON,
)


def recommend(
    machine: str, limit: int, everything: bool, local: bool, shape: str, as_json: bool, **options: Any
) -> int:
    """Rank the models that run on this machine, best first."""
    asked = request(options)
    from willitrun_here.machines import open_machine  # noqa: PLC0415
    from willitrun_here.rank import rank  # noqa: PLC0415

    where = open_machine(machine)
    from willitrun_here.cli.output import waiting  # noqa: PLC0415

    with waiting("ranking the catalog", quiet=as_json):
        rows = rank(where, asked, limit=None if everything else limit, local=local)
    if as_json or shape == "json":
        print_json({"schema": "willitrun.recommend/1", "machine": where.name, "recommendations": rows})
    elif shape == "html":
        from willitrun_here.render.lists import render_recommendations as render_html  # noqa: PLC0415

        print_text(render_html(rows, place=where.name))
    else:
        from willitrun_here.render.text import render_recommendations  # noqa: PLC0415

        render_recommendations(rows, console())
    if not rows:
        note("No model of the catalog runs here within these limits.")
    return 0 if rows else 1


def show_machine_and_best() -> int:
    """Show this machine and the best models for it: the command without arguments."""
    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_here.machines import here  # noqa: PLC0415
    from willitrun_here.rank import rank  # noqa: PLC0415
    from willitrun_here.render.machine import show as show_machine  # noqa: PLC0415
    from willitrun_here.render.text import render_recommendations  # noqa: PLC0415

    machine = here()
    screen = console()
    show_machine(machine, screen)
    rows = rank(machine, Request(), limit=10)
    screen.print()
    render_recommendations(rows, screen)
    note("\nMore: willitrun-here check MODEL · willitrun-here launch MODEL · willitrun-here --help")
    return 0 if rows else 1
