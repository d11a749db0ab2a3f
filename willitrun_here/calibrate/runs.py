"""What an engine did with a plan here, beside what the bare model says of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from willitrun_here.calibrate.store import keep_runs, path_of, read, store_folder

if TYPE_CHECKING:
    from willitrun_catalog.model import ModelSpec
    from willitrun_estimator.calibration import Run
    from willitrun_estimator.plan import Plan
    from willitrun_here.launch.run import Comparison
    from willitrun_here.launch.target import Target
    from willitrun_probe.machine import Machine


def run_engine(machine: Machine, model: Path, *, program: str, now: str, folder: Path | None = None) -> tuple[Run, ...]:
    """Plan a model file, run `llama-bench` with that plan and keep both speeds. Raises what planning raises."""
    from willitrun_estimator.request import Request  # noqa: PLC0415 - only here
    from willitrun_here.ask import ask, open_model  # noqa: PLC0415
    from willitrun_here.calibrate.kernels import bench  # noqa: PLC0415

    spec = open_model(str(model))
    asked = Request(engine="llama.cpp", context=512, prompt_tokens=128)
    plan = ask(machine, spec, asked, sections=frozenset({"plan"}), commands=False).plan
    if plan is not None and plan.experts_apart:
        # llama-bench is given the switch alone; blocks differ by a sixth at most, so that this many hold as much.
        fixed = min(plan.layers, plan.cpu_moe_layers + plan.cpu_moe_layers // 5 + len(plan.experts_apart))
        asked = structs.replace(asked, cpu_moe_layers=fixed)
        plan = ask(machine, spec, asked, sections=frozenset({"plan"}), commands=False).plan
    if plan is None:
        return ()
    found = bench(program, model, gpu_layers=plan.gpu_layers, threads=plan.threads, cpu_moe_layers=plan.cpu_moe_layers)
    return record_run(
        machine,
        spec,
        plan,
        decode_tokens_per_s=found.get("decode"),
        prefill_tokens_per_s=found.get("prefill"),
        prompt_tokens=128,
        depth_tokens=16,
        now=now,
        folder=folder,
    )


def record_run(
    machine: Machine,
    spec: ModelSpec,
    plan: Plan,
    *,
    decode_tokens_per_s: float | None,
    prefill_tokens_per_s: float | None,
    prompt_tokens: int,
    depth_tokens: int,
    now: str = "",
    folder: Path | None = None,
) -> tuple[Run, ...]:
    """Keep what an engine did with a plan beside what the bare model says of it, and return it.

    `depth_tokens` is the mean context while the answer was written. The model is asked without earlier runs, or a
    correction would count against itself. Raises OSError when the store cannot be written.
    """
    from willitrun_estimator.calibration import Run, prediction_of, where_of  # noqa: PLC0415 - only here

    predicted = predicted_speeds(machine, spec, plan, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
    measured = {"decode": decode_tokens_per_s, "prefill": prefill_tokens_per_s}
    runs = tuple(
        Run(
            test="decode" if test == "decode" else "prefill",
            model=spec.name,
            quant=plan.quant,
            engine=plan.engine,
            where=where_of(plan),
            gpu_layers=plan.gpu_layers,
            cpu_moe_layers=plan.cpu_moe_layers,
            predicted_tokens_per_s=expected,
            predicted_with=prediction_of(read(machine.shape_hash, folder)),
            measured_tokens_per_s=done,
            measured_at=now or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            depth_tokens=depth_tokens if test == "decode" else prompt_tokens,
        )
        for test, done in measured.items()
        if done and (expected := predicted.get(test)) is not None
    )
    if runs:
        keep_runs(machine.shape_hash, runs, folder)
    return runs


def predicted_speeds(
    machine: Machine, spec: ModelSpec, plan: Plan, *, prompt_tokens: int, depth_tokens: int
) -> dict[str, float]:
    """Return the model's own tokens per second of a llama.cpp plan; empty where it knows nothing."""
    from willitrun_estimator.hardware import devices  # noqa: PLC0415 - only here
    from willitrun_estimator.placement import Placement, Settings  # noqa: PLC0415
    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_estimator.throughput import SpeedModel  # noqa: PLC0415
    from willitrun_estimator.weights import weight_profile  # noqa: PLC0415
    from willitrun_here.ask import sheet_of  # noqa: PLC0415

    settings = Settings(
        context_tokens=plan.context_tokens, kv_type_k=plan.kv_type, kv_type_v=plan.kv_type, ubatch=plan.ubatch,
        batch=plan.batch, parallel=plan.parallel,
    )  # fmt: skip
    placement = Placement(
        gpu_layers=plan.gpu_layers,
        split=tuple(round(share) for share in plan.tensor_split),
        cpu_moe_layers=plan.cpu_moe_layers,
    )
    planned_on = devices(machine, Request(backend=plan.backend), sheet_of)
    model = SpeedModel(weight_profile(spec, plan.quant), planned_on, settings, engine=plan.engine)
    found = {
        "decode": model.decode_rate(placement, depth_tokens=depth_tokens),
        "prefill": model.prefill_rate(placement, prompt_tokens=max(1, prompt_tokens)),
    }
    return {test: rate for test, rate in found.items() if rate is not None}


def keep_measured(target: Target, comparison: Comparison, *, now: str = "", folder: Path | None = None) -> Path | None:
    """Keep what an engine that was started here did; None when it measured nothing or the store cannot be written."""
    probe = comparison.probe
    if probe is None:
        return None
    try:
        runs = record_run(
            target.machine,
            target.spec,
            target.plan,
            decode_tokens_per_s=probe.decode_tokens_per_s,
            prefill_tokens_per_s=probe.prefill_tokens_per_s,
            prompt_tokens=probe.prompt_tokens,
            depth_tokens=probe.prompt_tokens + probe.output_tokens // 2,
            now=now,
            folder=folder,
        )
    except OSError:
        return None
    return path_of(target.machine.shape_hash, folder or store_folder()) if runs else None
