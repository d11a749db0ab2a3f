"""Moving an estimate towards what was measured: on this machine first, else on the same GPU by others."""

from __future__ import annotations

from msgspec import Struct, structs

from willitrun_estimator.calibration import Corrections, Test, calibrate_interval, where_of
from willitrun_estimator.device import Device
from willitrun_estimator.interval import time_interval
from willitrun_estimator.measured import measured_alike, towards
from willitrun_estimator.plan import Interval, MeasuredRow, Plan, Speed

SHALLOW_TOKENS = 2048
"""Published rows are taken with little context; deeper questions are not moved towards them."""


class Known(Struct, frozen=True, kw_only=True):
    """What an estimate is for, and what was measured on the machine it is for."""

    plan: Plan
    model: str
    gpus: tuple[Device, ...]
    corrections: Corrections | None
    prompt_tokens: int
    depth_tokens: int


def informed(estimated: Speed, known: Known) -> Speed:
    """Return the speeds with everything known of this plan in them, and the published rows beside them."""
    decode, decode_rows = moved(estimated.decode_tokens_per_s, "decode", known)
    prefill, prefill_rows = moved(estimated.prefill_tokens_per_s, "prefill", known)
    rows = (*decode_rows, *prefill_rows)
    if decode is None or prefill is None:
        return structs.replace(estimated, measured=rows)
    warm = time_interval(known.prompt_tokens, prefill, extra_s=1.0 / decode.expected)
    load, cold = estimated.load_s, None
    if load is not None:
        cold = Interval(
            expected=warm.expected + load.expected,
            low=warm.low + load.low,
            high=warm.high + load.high,
            basis=warm.basis,
        )
    return Speed(
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        ttft_s=warm,
        ttft_cold_s=cold,
        load_s=load,
        measured=rows,
    )


def moved(interval: Interval | None, test: Test, known: Known) -> tuple[Interval | None, tuple[MeasuredRow, ...]]:
    """Return one speed moved towards its evidence, and the published rows of the same setup."""
    if interval is None:
        return None, ()
    plan, where = known.plan, where_of(known.plan)
    if known.corrections is not None:
        interval = calibrate_interval(
            interval,
            known.corrections,
            test=test,
            model=known.model,
            quant=plan.quant,
            engine=plan.engine,
            where=where,
            gpu_layers=plan.gpu_layers,
            cpu_moe_layers=plan.cpu_moe_layers,
            depth_tokens=known.depth_tokens if test == "decode" else known.prompt_tokens,
        )
    sheets = {gpu.sheet for gpu in known.gpus}
    if where != "gpu" or len(sheets) != 1 or None in sheets or known.depth_tokens > SHALLOW_TOKENS:
        return interval, ()
    rows = measured_alike(
        gpu=known.gpus[0].sheet or "",
        gpus=len(known.gpus),
        backend=plan.backend,
        model=known.model,
        quant=plan.quant,
        engine=plan.engine,
        test=test,
    )
    return towards(interval, rows), rows
