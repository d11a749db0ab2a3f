"""The matrices that routed experts of a block consist of, for placements that put some of them elsewhere."""

from __future__ import annotations

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.tensors import blueprint
from willitrun_estimator.weight_groups import grouped
from willitrun_estimator.weights import sizer

LEAVING = ("ffn_down_exps", "ffn_gate_exps", "ffn_gate_up_exps", "ffn_up_exps")
"""The order in which llama.cpp's `--fit` lets them leave a GPU (common/fit.cpp, `get_overflow_pattern`)."""

Parts = tuple[tuple[str, int], ...]
"""Names without a suffix, and bytes with biases and scales; what leaves first comes first."""


def expert_parts(spec: ModelSpec, quant: str) -> tuple[Parts, ...]:
    """Return the matrices of the routed experts of every loaded block; () for a block without any."""
    plan = blueprint(spec)
    model, size = grouped(plan), sizer(spec, quant)
    groups = []
    for group in model.groups:
        found: dict[str, int] = {}
        for item, place in group.pieces:
            if item.role == "experts":
                name = item.name.partition(".")[0]
                found[name] = found.get(name, 0) + size(item, place)[1]
        known = tuple((name, found.pop(name)) for name in LEAVING if name in found)
        # Experts of another make are not cut: what is not known by name would stay behind.
        groups.append(() if found else known)
    return tuple(groups[number] for number in model.order[: plan.loaded_blocks])
