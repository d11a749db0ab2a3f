"""Targets for the launch tests: real plans of recorded or described machines."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from tests.probe import machines as recorded
from willitrun_catalog.find import find_model
from willitrun_estimator.request import Request
from willitrun_here.ask import ask
from willitrun_here.launch.flags import NEWEST
from willitrun_here.launch.target import Target
from willitrun_here.machines import open_machine
from willitrun_probe.machine import Machine


def planned(where: Machine, model: str, **asked: Any) -> Target:
    """Plan on a machine with the newest flags, whatever is installed where the tests run."""
    spec = find_model(model).spec
    result = ask(where, spec, Request(**asked), sections=frozenset({"plan"}), commands=False)
    assert result.plan is not None, result.fit.message
    return Target(plan=result.plan, spec=spec, machine=where, flags=NEWEST)


def on_recorded(name: str, model: str, **asked: Any) -> Target:
    return planned(recorded.machine(name), model, **asked)


def on_words(words: str = "RTX 3090, 64 GiB RAM", model: str = "llama-3.1-8b", **asked: Any) -> Target:
    return planned(open_machine(words), model, **{"quant": "Q4_K_M", "context": 8192, **asked})


def from_source(target: Target, source: str, files: tuple[str, ...] = (), **fields: Any) -> Target:
    return structs.replace(target, spec=structs.replace(target.spec, source=source, files=files, **fields))
