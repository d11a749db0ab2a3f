"""A folder of linked pages: every answer, every machine with its models, every model with its machines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from willitrun_estimator.plan import Answer
from willitrun_here.render import card, lists, page
from willitrun_here.render.environment import Link
from willitrun_here.render.tables import Column, Row, Table
from willitrun_here.render.wording import hardware

LONGEST_NAME = 80


class Names:
    """File names made of people's words: safe in any file system, and no two alike (case ignored)."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, words: str) -> str:
        """Return a new name without an extension."""
        base = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.")[:LONGEST_NAME].strip("-.") or "page"
        name, number = base, 2
        while name in self._taken:
            name, number = f"{base}-{number}", number + 1
        self._taken.add(name)
        return name


def write(folder: Path, answers: Sequence[Answer]) -> tuple[Path, ...]:
    """Write the set and return the files, the index first.

    Answers keep their order within a machine (ranked) and within a model. A machine is its name and hardware.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = Names()
    names.take("index")
    machines = _grouped(answers, lambda answer: f"{hardware(answer)} {answer.machine.name}")
    models = _grouped(answers, lambda answer: answer.model.name)
    machine_files = {key: names.take(f"on {key}") + ".html" for key in machines}
    model_files = {key: names.take(f"{key} everywhere") + ".html" for key in models}
    stems = [names.take(f"{answer.model.name} on {hardware(answer)}") for answer in answers]
    files: dict[str, str] = {}

    home = Link(href="index.html", text="All machines and models")
    files["index.html"] = _index(machines, models, machine_files, model_files)
    for key, indexes in machines.items():
        chosen = [answers[index] for index in indexes]
        hrefs = [stems[index] + ".html" for index in indexes]
        files[machine_files[key]] = lists.render_recommendations(chosen, hrefs=hrefs, links=(home,))
    for key, indexes in models.items():
        chosen = [answers[index] for index in indexes]
        hrefs = [stems[index] + ".html" for index in indexes]
        files[model_files[key]] = lists.render_comparison(chosen, hrefs=hrefs, links=(home,))
    machine_of = {index: key for key, indexes in machines.items() for index in indexes}
    for index, (answer, stem) in enumerate(zip(answers, stems, strict=True)):
        links = (
            Link(href=machine_files[machine_of[index]], text=f"All results for {hardware(answer)}"),
            Link(href=model_files[answer.model.name], text=f"All hardware for {answer.model.title}"),
            home,
            Link(href=f"{stem}.card.html", text="The card alone"),
        )
        files[f"{stem}.html"] = page.render(answer, links=links)
        files[f"{stem}.card.html"] = card.render_html(answer)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return tuple(folder / name for name in files)


def _grouped(answers: Sequence[Answer], key: Callable[[Answer], str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        groups.setdefault(key(answer), []).append(index)
    return groups


def _index(
    machines: dict[str, list[int]],
    models: dict[str, list[int]],
    machine_files: dict[str, str],
    model_files: dict[str, str],
) -> str:
    columns = (Column(name="Name", wraps=True), Column(name="Answers", numeric=True))
    parts = []
    for title, groups, targets in (("Machines", machines, machine_files), ("Models", models, model_files)):
        rows = tuple(Row(cells=(key, f"{len(indexes)}")) for key, indexes in groups.items())
        table = Table(title=title, columns=columns, rows=rows)
        parts.append(lists.Part(table=table, hrefs=tuple(targets[key] for key in groups)))
    description = f"{len(machines)} machines and {len(models)} models."
    return lists.render_list("What runs where", description, parts)
