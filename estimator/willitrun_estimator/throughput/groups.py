"""Which group of measurements a prediction belongs to, the most particular first: its residuals give the interval."""

from __future__ import annotations

from collections.abc import Mapping

from willitrun_estimator.families import UNKNOWN
from willitrun_estimator.interval import Spread, spread
from willitrun_estimator.placement import Placement
from willitrun_estimator.plan import Basis
from willitrun_estimator.throughput.gpu import SAME_KERNEL
from willitrun_estimator.throughput.model import SpeedModel


def _where(model: SpeedModel, placement: Placement) -> str:
    """Return `gpu`, `host` or `offload`: who computes."""
    spans = model.spans(placement)
    if not spans.gpus:
        return "host"
    last = max(spans.host_blocks, spans.expert_blocks)
    moved = model.work.moe_blocks[last] > model.work.moe_blocks[spans.host_blocks]
    return "offload" if spans.host_blocks or moved else "gpu"


def groups(model: SpeedModel, placement: Placement) -> tuple[str, ...]:
    """Return the names of the groups to look up, the most particular first."""
    where = _where(model, placement)
    if where == "host":
        return _host_groups(model)
    return (where,) if where != "gpu" else _gpu_groups(model, placement)


def basis(model: SpeedModel, placement: Placement) -> Basis:
    """Return what a prediction rests on: a host that takes part and whose kernels were measured corrects it."""
    return "calibrated" if model.devices.host.product_rates and _where(model, placement) != "gpu" else "estimated"


def _host_groups(model: SpeedModel) -> tuple[str, ...]:
    host = model.devices.host
    return ("host-calibrated" if host.product_rates else f"host-{host.bandwidth_basis}", "host")


def _gpu_groups(model: SpeedModel, placement: Placement) -> tuple[str, ...]:
    """Return the group of the family, of families without rows, or of GPUs that no table knows."""
    family = _family(model, placement)
    kind = "moe" if model.work.moe_blocks[-1] else "dense"
    if family not in model.constants.families or family == UNKNOWN:
        return (f"unknown-{kind}",)
    return (f"{family}-{kind}", f"new-family-{kind}")


def _family(model: SpeedModel, placement: Placement) -> str:
    return model.devices.gpus[model.spans(placement).gpus[0][0]].family


def around(table: Mapping[str, Spread], model: SpeedModel, placement: Placement) -> Spread:
    """Return the bounds of a prediction: those of its group, times what widens them.

    Vulkan and ollama scatter more on the same GPUs. Recurrent mixers of a kind without rows may be computed by kernels
    that are new: then the bounds also hold how far first builds were from what they became.
    """
    found = spread(table, groups(model, placement))
    if _where(model, placement) != "gpu":
        return found
    backend = model.devices.gpus[model.spans(placement).gpus[0][0]].backend
    for name, holds in (("vulkan", backend == "vulkan"), ("ollama", model.engine == "ollama")):
        more = table.get(name)
        if holds and more:
            found = Spread(found.low * more.low, found.high * more.high, found.rows)
    kind = model.work.recurrent_kind
    if kind and SAME_KERNEL.get(kind, kind) not in model.constants.shared.recurrent:
        found = spread(table, ("new-kernels",))
    return found


def decode_spread(model: SpeedModel, placement: Placement) -> Spread:
    """Return the ratios that hold 80 % of measured decode speeds."""
    return around(model.constants.decode_spread, model, placement)


def prefill_spread(model: SpeedModel, placement: Placement) -> Spread:
    """Return the ratios that hold 80 % of measured prompt speeds."""
    return around(model.constants.prefill_spread, model, placement)
