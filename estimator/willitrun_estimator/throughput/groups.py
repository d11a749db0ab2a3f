"""Which group of measurements a prediction belongs to, the most particular first: its residuals give the interval."""

from __future__ import annotations

from willitrun_estimator.placement import Placement
from willitrun_estimator.plan import Basis
from willitrun_estimator.throughput.model import SpeedModel


def _where(model: SpeedModel, placement: Placement) -> str:
    """Return `gpu`, `host` or `offload`: who computes."""
    spans = model.spans(placement)
    if not spans.gpus:
        return "host"
    last = max(spans.host_blocks, spans.expert_blocks)
    moved = model.work.moe_blocks[last] > model.work.moe_blocks[spans.host_blocks]
    return "offload" if spans.host_blocks or moved else "gpu"


def decode_groups(model: SpeedModel, placement: Placement, depth_tokens: float) -> tuple[str, ...]:
    """Return the names of the groups to look up for a decode speed."""
    where = _where(model, placement)
    if where == "host":
        return _host_groups(model)
    if where == "offload":
        return ("offload",)
    return _gpu_groups(model, placement, depth_tokens)


def prefill_groups(model: SpeedModel, placement: Placement) -> tuple[str, ...]:
    """Return the names of the groups to look up for a prefill speed."""
    where = _where(model, placement)
    if where == "host":
        return _host_groups(model)
    return (where,) if where != "gpu" else _gpu_groups(model, placement, 0)


def basis(model: SpeedModel, placement: Placement) -> Basis:
    """Return what a prediction rests on: a host that takes part and whose kernels were measured corrects it."""
    return "calibrated" if model.devices.host.product_rates and _where(model, placement) != "gpu" else "estimated"


def _host_groups(model: SpeedModel) -> tuple[str, ...]:
    host = model.devices.host
    return ("host-calibrated" if host.product_rates else f"host-{host.bandwidth_basis}", "host")


def _gpu_groups(model: SpeedModel, placement: Placement, depth_tokens: float) -> tuple[str, ...]:
    family = model.devices.gpus[model.spans(placement).gpus[0][0]].family
    if family not in model.constants.families:
        family = "unknown"
    kind = "moe" if model.work.moe_blocks[-1] else "dense"
    del depth_tokens
    return (f"{family}-{kind}", "moe" if kind == "moe" else "sparse", kind, "all")
