"""Blocks cut in two against llama.cpp's own planner, on one to three simulated GPUs.

The rows were printed by `llama-fit-params -fitp on -fit off -fa on --no-repack` of llama.cpp 0c1e57098 in whole MiB:
weights, cache, compute buffer of every GPU and of the host. It keeps logits of the whole micro-batch.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.estimator.test_fit import MIB, devices
from willitrun_catalog.shipped import model
from willitrun_estimator.expert_parts import expert_parts
from willitrun_estimator.footprint import footprint
from willitrun_estimator.placement import Override, Placement, Settings
from willitrun_estimator.weights import weight_profile

TRUTH = Path(__file__).parent.parent / "truth" / "llamacpp_cut_blocks.jsonl"
ROWS = [json.loads(line) for line in TRUTH.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['split']}-{row['cpu_moe_layers']}")
def test_every_device_holds_what_llama_cpp_plans(row: dict) -> None:
    spec = model(row["model"])
    parts = expert_parts(spec, row["quant"])
    placement = Placement(
        gpu_layers=row["gpu_layers"],
        split=tuple(row["split"]),
        cpu_moe_layers=row["cpu_moe_layers"],
        overrides=tuple(
            Override(
                block=block,
                tensors=tuple(names),
                device=device,
                bytes=sum(size for name, size in parts[block] if name in names),
            )
            for block, names, device in row["overrides"]
        ),
    )
    settings = Settings(context_tokens=row["context"], logit_rows=512, repack=False)
    gpus = devices([[100_000, 100_000]] * len(row["split"]))
    uses = footprint(weight_profile(spec, row["quant"]), gpus, placement, settings)
    for use, (weights, cache, compute) in zip(uses, row["mib"], strict=True):
        assert use.weights_bytes / MIB == pytest.approx(weights, abs=2, rel=0.001)
        assert (use.kv_cache_bytes + use.recurrent_bytes) / MIB == pytest.approx(cache, abs=2)
        assert use.compute_bytes / MIB == pytest.approx(compute, abs=2, rel=0.005)
