"""Our plans against llama.cpp's `--fit` on further models, quantizations and sets of GPUs, three unequal ones and four.

The rows were printed by `llama-fit-params` of llama.cpp 0c1e57098 on simulated GPUs with its default margin of 1 GiB.
`cpu_expert_layers` counts the blocks any of whose experts it keeps on the CPU, `partial` the blocks it cuts in two.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.estimator.test_fit import MIB, devices
from willitrun_catalog.model import ModelSpec, Moe
from willitrun_catalog.shipped import model
from willitrun_estimator.answer import answer_on
from willitrun_estimator.placement import Placement, Settings
from willitrun_estimator.plan import Plan
from willitrun_estimator.request import Request
from willitrun_estimator.throughput import SpeedModel
from willitrun_estimator.weights import weight_profile

TRUTH = Path(__file__).parent.parent / "truth" / "llamacpp_fit_more.jsonl"
ROWS = [json.loads(line) for line in TRUTH.read_text(encoding="utf-8").splitlines()]
MISSES: dict[tuple[str, str, int | None], str] = {
    ("deepseek-v3.1", "16384+16384+16384+16384", 32768): "one matrix of one block more on the host",
    ("llama-4-scout-17b-16e-instruct", "49140+49140+49140+49140", None): "a context of 1,991,936 tokens on four GPUs",
}
"""What falls short, and by what; the rest must hold."""


def key(row: dict) -> tuple[str, str, int | None]:
    return row["model"], "+".join(str(total) for total, _ in row["gpus"]), row["asked"]


def routed(spec: ModelSpec, blocks: int) -> int:
    return sum(isinstance(layer.ffn, Moe) for layer in spec.layers[:blocks])


def their_units(spec: ModelSpec, gpu_layers: int) -> int:
    """Blocks and head on GPUs; `--fit` counts next-token layers, which are not loaded."""
    whole = not 0 <= gpu_layers < spec.block_count + 1 + spec.mtp_layers
    return spec.block_count + 1 if whole else max(0, gpu_layers - spec.mtp_layers)


def our_units(spec: ModelSpec, plan: Plan) -> int:
    return plan.gpu_layers - (spec.mtp_layers if plan.gpu_layers > 1 else 0)


def experts_on_host(spec: ModelSpec, plan: Plan) -> int:
    """Count the blocks any of whose experts are on the host."""
    apart = [one for one in plan.experts_apart if one.device is None]
    switch = plan.cpu_moe_layers - sum(one.whole for one in apart)
    return routed(spec, max(spec.block_count + 1 - our_units(spec, plan), switch)) + len(apart)


def faster(row: dict, spec: ModelSpec, ours: float, theirs: int, moved: int) -> bool:
    """Tell whether a rate is above that of so many units on the GPU with the experts of so many blocks on the host."""
    placement = Placement(gpu_layers=theirs, split=(theirs,), cpu_moe_layers=moved)
    model = SpeedModel(
        weight_profile(spec, row["quant"]), devices(row["gpus"]), Settings(context_tokens=row["context"])
    )
    rate = model.decode_rate(placement)
    return rate is not None and ours > rate


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, (*key(row), row["quant"]))))
def test_at_least_as_much_is_on_the_gpus_as_llama_cpp_puts_there(row: dict, request: pytest.FixtureRequest) -> None:
    spec = model(row["model"])
    asked = Request(
        quant=row["quant"], context=row["context"], kv_type="f16", ubatch=512, margin_bytes=1024 * MIB,
        flash_attention=True,
    )  # fmt: skip
    result = answer_on(devices(row["gpus"]), spec, asked, sections=frozenset({"plan", "speed"}))
    plan = result.plan
    assert plan is not None
    assert result.fit.status != "too-large"
    assert all(use.total_bytes <= use.free_bytes for use in plan.devices if use.kind == "gpu")
    if key(row) in MISSES:
        request.applymarker(pytest.mark.xfail(reason=MISSES[key(row)], strict=True))
    theirs, ours = their_units(spec, row["gpu_layers"]), our_units(spec, plan)
    assert ours >= theirs
    moved = routed(spec, spec.block_count + 1 - theirs) + row["cpu_expert_layers"]
    if experts_on_host(spec, plan) > moved:
        # With little memory `--fit` can keep one block whole at the cost of many others' attention.
        assert len(row["gpus"]) == 1
        assert ours > theirs
        assert result.speed is not None
        assert result.speed.decode_tokens_per_s is not None
        first = spec.block_count + 1 - theirs + row["cpu_expert_layers"]
        assert faster(row, spec, result.speed.decode_tokens_per_s.expected, theirs, first)
