"""Our plans against llama.cpp's own `--fit`: same free memory, margin, context and quantization.

The rows were printed by `llama-fit-params` of llama.cpp 0c1e57098 on simulated GPUs with its default margin of 1 GiB.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from willitrun_catalog.find import find_model
from willitrun_catalog.model import Moe
from willitrun_estimator.answer import answer_on
from willitrun_estimator.device import Device, Devices, Host
from willitrun_estimator.request import Request

MIB = 1 << 20
TRUTH = Path(__file__).parent.parent / "truth" / "llamacpp_fit.jsonl"
ROWS = [json.loads(line) for line in TRUTH.read_text(encoding="utf-8").splitlines()]
NAMES = {"deepseek-v3": "deepseek-v3", "kimi-linear-48b": "kimi-linear"}


def devices(gpus: list[list[int]]) -> Devices:
    cards = tuple(
        Device(
            name=f"GPU{total}", backend="cuda", family="ampere", memory_total_bytes=total * MIB,
            memory_free_bytes=free * MIB, bandwidth_bytes_per_s=9e11, flops_per_s=7e13, multiprocessors=82,
            link_bytes_per_s=2e10, compute_capability="8.6",
        )
        for total, free in gpus
    )  # fmt: skip
    host = Host(ram_total_bytes=1 << 41, ram_available_bytes=1 << 41, bandwidth_bytes_per_s=4e10, threads=8)
    return Devices(name="simulated", gpus=cards, host=host)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['gpus']}-{row['asked']}")
def test_at_least_as_much_is_on_the_gpus_as_llama_cpp_puts_there(row: dict) -> None:
    spec = find_model(NAMES.get(row["model"], row["model"])).spec
    plan_on = devices(row["gpus"])
    request = Request(
        quant=row["quant"], context=row["context"], kv_type="f16", ubatch=512, margin_bytes=1024 * MIB,
        flash_attention=True,
    )  # fmt: skip
    result = answer_on(plan_on, spec, request, sections=frozenset({"plan"}))
    plan = result.plan
    assert plan is not None
    assert result.fit.status != "too-large"
    for use, (_, free) in zip(plan.devices, row["gpus"], strict=False):
        assert use.total_bytes <= free * MIB
    whole = row["gpu_layers"] < 0 or row["gpu_layers"] > spec.block_count
    theirs = spec.block_count + 1 if whole else row["gpu_layers"]
    on_host = spec.block_count + 1 - min(plan.gpu_layers, spec.block_count + 1)
    if row["cpu_expert_layers"]:
        first = max(on_host, plan.cpu_moe_layers)
        assert sum(isinstance(layer.ffn, Moe) for layer in spec.layers[:first]) <= row["cpu_expert_layers"]
    else:
        assert spec.block_count + 1 - on_host >= theirs
        assert plan.cpu_moe_layers == 0 or not whole
