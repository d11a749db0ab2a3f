"""Whole answers on described machines, for the tests of what is said about them."""

from __future__ import annotations

from typing import Any

from willitrun_catalog.find import find_model
from willitrun_estimator.found import Found
from willitrun_estimator.plan import Answer
from willitrun_estimator.request import Request
from willitrun_here.ask import ask
from willitrun_here.machines import from_object, open_machine


def answered(model: str, machine: str | dict[str, Any], **asked: Any) -> Answer:
    where = open_machine(machine) if isinstance(machine, str) else from_object(machine)
    return ask(where, find_model(model).spec, Request(**asked), commands=False)


def found(**fields: Any) -> Found:
    values = {
        "quant": "Q4_K_M", "kv_type": "f16", "context_tokens": 8192, "ubatch": 512, "gpus": (0,), "placement": None,
        "used_bytes": (1, 1), "rate": 50.0, "ttft_s": 0.5, "quality": 0.95, "short_bytes": 0, "score": 80.0,
    }  # fmt: skip
    return Found(**(values | fields))
