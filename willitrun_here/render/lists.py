"""Tables of answers as pages: the best models for a machine, one model on many machines."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from willitrun_estimator.plan import Answer
from willitrun_here.render.environment import Link, render_template
from willitrun_here.render.tables import Table, comparison_table, recommendation_table
from willitrun_here.render.wording import hardware


class Part(Struct, frozen=True, kw_only=True):
    """A table with a link per row (or none at all) in one of its columns."""

    table: Table
    hrefs: tuple[str, ...] = ()
    link_column: int = 0


def render_recommendations(
    answers: Sequence[Answer], *, hrefs: Sequence[str] = (), links: Sequence[Link] = (), place: str = ""
) -> str:
    """Return the page of the models ranked for one machine; `hrefs` go to the answers' own pages."""
    where = place or (hardware(answers[0]) if answers else "this machine")
    title = f"The best models for {where}"
    part = Part(table=recommendation_table(answers, title="Ranked models"), hrefs=tuple(hrefs), link_column=1)
    description = f"{len(answers)} models, ranked by quality, speed, waiting time and context on {where}."
    return render_list(title, description, (part,), links=links, crumb=answers[0].machine.name if answers else "")


def render_comparison(answers: Sequence[Answer], *, hrefs: Sequence[str] = (), links: Sequence[Link] = ()) -> str:
    """Return the page of one model on several machines."""
    model = answers[0].model.title if answers else "the model"
    part = Part(table=comparison_table(answers), hrefs=tuple(hrefs))
    return render_list(
        f"Where {model} runs", f"{model} on {len(answers)} machines, with the best plan on each.", (part,), links=links
    )


def render_list(
    title: str, description: str, parts: Sequence[Part], *, links: Sequence[Link] = (), crumb: str = ""
) -> str:
    """Return a page of tables."""
    return render_template(
        "list.html", page_title=title, description=description, parts=parts, links=links, crumb=crumb
    )
