"""Tensor lists of the feed-forward part of a block: dense, routed experts, shared experts."""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_catalog.model import Dense, Ffn, Moe
from willitrun_estimator.tensors.part import Part, bare, bias, matrix


def dense(
    hidden: int,
    width: int,
    *,
    gated: bool = True,
    joined: bool = False,
    biased: bool = False,
    suffix: str = "",
) -> Iterator[Part]:
    """Give a dense network. `joined` keeps gate and up in one `ffn_up` (Phi-3, GLM-4)."""
    if gated and not joined:
        yield matrix(f"ffn_gate{suffix}", hidden, width)
    yield matrix(f"ffn_up{suffix}", hidden, 2 * width if joined else width)
    yield matrix(f"ffn_down{suffix}", width, hidden)
    if biased:
        yield bias(f"ffn_up{suffix}", 2 * width if joined else width)
        yield bias(f"ffn_down{suffix}", hidden)


def experts(hidden: int, moe: Moe, *, type: str | None = None, joined: bool = False) -> Iterator[Part]:  # noqa: A002
    """Give the routed experts: three matrices of three dimensions, one slice an expert (two if not gated)."""
    if joined:
        yield matrix("ffn_gate_up_exps", hidden, 2 * moe.width, moe.experts, type=type)
    else:
        if moe.gated:
            yield matrix("ffn_gate_exps", hidden, moe.width, moe.experts, type=type)
        yield matrix("ffn_up_exps", hidden, moe.width, moe.experts, type=type)
    yield matrix("ffn_down_exps", moe.width, hidden, moe.experts, type=type)


def feed_forward(
    hidden: int,
    ffn: Ffn,
    *,
    joined: bool = False,
    biased: bool = False,
    router_bias: bool = False,
    bare_router_bias: bool = False,
    shared_gate: bool = False,
    expert_type: str | None = None,
) -> Iterator[Part]:
    """Give the network of a block, dense or routed.

    `router_bias` adds the balancing bias per expert (`exp_probs_b.bias`, without the suffix if `bare_router_bias`),
    `shared_gate` the gate of the shared expert, `expert_type` the type in which the makers trained the experts (MXFP4).
    """
    if isinstance(ffn, Dense):
        yield from dense(hidden, ffn.width, gated=ffn.gated, joined=joined, biased=biased)
    elif isinstance(ffn, Moe):
        yield matrix("ffn_gate_inp", hidden, ffn.experts)
        if router_bias:
            yield (bare if bare_router_bias else bias)("exp_probs_b", ffn.experts)
        yield from experts(hidden, ffn, type=expert_type)
        if ffn.shared_width:
            yield from dense(hidden, ffn.shared_width, gated=ffn.gated, suffix="_shexp")
            if shared_gate:
                yield Part("ffn_gate_inp_shexp.weight", (hidden,), "norm")
