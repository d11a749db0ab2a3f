"""Transformers with routed experts. Checked against `src/models/*.cpp` of llama.cpp (0c1e57098)."""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_catalog.model import Layer, ModelSpec
from willitrun_estimator.tensors.family import MIDDLE_NORMS, SANDWICH_NORMS, Family, block
from willitrun_estimator.tensors.part import Part, matrix, norm


def _ling2_next(spec: ModelSpec, layer: Layer, index: int) -> Iterator[Part]:
    yield from block(FAMILIES["bailingmoe2"], spec, layer, index)
    yield matrix("nextn.eh_proj", 2 * spec.hidden_size, spec.hidden_size)
    for name in ("nextn.enorm", "nextn.hnorm", "layer_output_norm"):
        yield norm(name, spec.hidden_size)


FAMILIES: dict[str, Family] = {
    "qwen2moe": Family(qkv_bias=True, shared_gate=True),
    "qwen3moe": Family(qk_norm="head"),
    "qwen3vlmoe": Family(qk_norm="head"),
    "mellum": Family(qk_norm="head"),
    "olmoe": Family(qk_norm="full"),
    "granitemoe": Family(),
    "llama4": Family(),
    "phimoe": Family(norm_bias=True, qkv_bias=True, output_bias=True, head_bias=True),
    "ernie4_5-moe": Family(router_bias=True),
    "exaone-moe": Family(qk_norm="head", router_bias=True),
    "hunyuan-moe": Family(qk_norm="head"),
    "hy_v3": Family(qk_norm="head", router_bias=True, bare_router_bias=True),
    "minimax-m2": Family(qk_norm="full", router_bias=True),
    "glm4moe": Family(norms=MIDDLE_NORMS, router_bias=True),
    "bailingmoe2": Family(fused_qkv=True, qk_norm="head", router_bias=True, next_token=_ling2_next),
    "deepseek2": Family(router_bias=None),
    "deepseek32": Family(router_bias=True),
    "glm-dsa": Family(router_bias=True),
    "afmoe": Family(norms=SANDWICH_NORMS, qk_norm="head", attention_gate="value", router_bias=True),
    "laguna": Family(qk_norm="head", attention_gate="heads", router_bias=True),
    "step35": Family(qk_norm="head", attention_gate="heads", router_bias=True),
    "mimo2": Family(router_bias=True, sinks=None),
    "gpt-oss": Family(norms=MIDDLE_NORMS, qkv_bias=True, output_bias=True, sinks=True, expert_bias=True),
}
