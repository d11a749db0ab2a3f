"""The estimator as the fleet uses it: on facts of another machine, without ids or programs of this one."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from itertools import islice

from msgspec import structs

from willitrun_catalog import shipped
from willitrun_catalog.find import find_model
from willitrun_catalog.model import ModelSpec
from willitrun_estimator.answer import Section, answer_on, ranked_answer
from willitrun_estimator.hardware import devices
from willitrun_estimator.plan import Answer
from willitrun_estimator.prepared import Prepared
from willitrun_estimator.request import Request
from willitrun_here import __version__
from willitrun_here.ask import all_commands, sheet_of
from willitrun_here.ask import prepared_of as made_ready
from willitrun_probe.machine import Machine

MOST_PREPARED = 8
"""Models whose sums are kept."""
SECTIONS: frozenset[Section] = frozenset({"plan", "speed", "score"})


def plan(machine: Machine, spec: ModelSpec, request: Request) -> Answer:
    """Answer one question by the whole search, with the command of the winning plan for the newest engine known."""
    plan_on = devices(machine, request, sheet_of)
    found = answer_on(plan_on, spec, request, sections=SECTIONS, prepared=prepared_of(spec))
    return _with_command(found, machine, spec)


def screen(machine: Machine, spec: ModelSpec, request: Request) -> Answer:
    """Answer fast, as rankings are made: a narrower search that looks at memory quickly.

    Both agree on whether a model runs; where this finds nothing, the whole search says what is missing.
    """
    plan_on = devices(machine, request, sheet_of)
    found = ranked_answer(plan_on, spec, request, floor=0.0, prepared=prepared_of(spec))
    return plan(machine, spec, request) if found is None else _with_command(found, machine, spec)


_PREPARED: OrderedDict[int, Prepared] = OrderedDict()


def prepared_of(spec: ModelSpec) -> Prepared:
    """Return the sums of a model: one question asks about it on many shapes of machines."""
    known = _PREPARED.get(id(spec))
    if known is None or known.spec is not spec:
        known = _PREPARED[id(spec)] = made_ready(spec)
        while len(_PREPARED) > MOST_PREPARED:
            _PREPARED.popitem(last=False)
    return known


def _with_command(result: Answer, machine: Machine, spec: ModelSpec) -> Answer:
    from willitrun_here.launch.flags import NEWEST  # noqa: PLC0415 - only where a plan was found
    from willitrun_here.launch.target import Target  # noqa: PLC0415

    if result.plan is None or result.fit.status == "too-large":
        return result
    target = Target(plan=result.plan, spec=spec, machine=machine, flags=NEWEST)
    # The engine that was planned for comes first; the others would be translated for nobody.
    return structs.replace(result, commands=dict(islice(all_commands(target), 1)))


def find_catalog_model(text: str) -> ModelSpec:
    """Return the catalog model a name means; raises CatalogError. Never opens a file or an address."""
    return find_model(text, others=False).spec


def model_names() -> tuple[str, ...]:
    """Return the names of the catalog."""
    return shipped.model_names()


def catalog_version() -> str:
    """Return what stored plans depend on beside machine, model and question: this program and its catalog."""
    return f"{__version__}-{hashlib.sha256(shipped.compiled_bytes()).hexdigest()[:16]}"
