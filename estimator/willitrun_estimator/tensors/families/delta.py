"""Delta attention between latent or plain attention: Ling 3.0, Kimi K3; and MiniMax's linear and sparse attention."""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_catalog.model import Attention, Layer, Mla, ModelSpec, Moe, Recurrent
from willitrun_estimator.tensors import mixers
from willitrun_estimator.tensors.family import Family, expert_type
from willitrun_estimator.tensors.feed_forward import dense, experts, feed_forward
from willitrun_estimator.tensors.part import Part, bare, bias, matrix, norm


def _ling3_attention(spec: ModelSpec, layer: Layer) -> Iterator[Part]:
    hidden = spec.hidden_size
    yield norm("attn_norm", hidden)
    yield norm("ffn_norm", hidden)
    for mixer in layer.mixers:
        if isinstance(mixer, Mla):
            yield from mixers.latent(hidden, mixer)
            yield matrix("attn_gate", hidden, mixer.heads)
        elif isinstance(mixer, Recurrent):
            yield from mixers.full_rank_delta(hidden, mixer, gate="ssm_g_a")
            yield bare("ssm_a", 1, mixer.heads)


def _ling3(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    yield from _ling3_attention(spec, layer)
    yield from feed_forward(spec.hidden_size, layer.ffn, router_bias=True)


def _ling3_next(spec: ModelSpec, layer: Layer, index: int) -> Iterator[Part]:
    yield from _ling3(spec, layer, index)
    yield matrix("nextn.eh_proj", 2 * spec.hidden_size, spec.hidden_size)
    yield norm("nextn.enorm", spec.hidden_size)
    yield norm("nextn.hnorm", spec.hidden_size)
    yield norm("layer_output_norm", spec.hidden_size)


def _kimi_k3(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    hidden, ffn, latent = spec.hidden_size, layer.ffn, dict(spec.sizes)["latent_dim"]
    for name in ("attn_norm", "ffn_norm", "attn_res_score", "ffn_res_score"):
        yield norm(name, hidden)
    for mixer in layer.mixers:
        if isinstance(mixer, Mla):
            yield from mixers.latent(hidden, mixer)
            yield matrix("attn_gate", hidden, mixer.heads * mixer.value_dim)
        elif isinstance(mixer, Recurrent):
            yield from mixers.full_rank_delta(hidden, mixer, gate="ssm_g", forget_rank=mixer.head_dim)
            yield bare("ssm_a", mixer.heads)
    if not isinstance(ffn, Moe):
        yield from feed_forward(hidden, ffn)
        return
    yield matrix("ffn_gate_inp", hidden, ffn.experts)
    yield bias("exp_probs_b", ffn.experts)
    yield from experts(latent, ffn, type=expert_type(spec))
    yield matrix("ffn_routed_down", hidden, latent)
    yield matrix("ffn_routed_up", latent, hidden)
    yield norm("ffn_routed_norm", latent)
    yield from dense(hidden, ffn.shared_width, suffix="_shexp")


def _kimi_k3_outside(spec: ModelSpec) -> Iterator[Part]:
    yield norm("output_res_score", spec.hidden_size)


def _minimax_m3_indexer(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    mixer, sizes = layer.mixers[0], dict(spec.sizes)
    if isinstance(mixer, Attention) and mixer.indexer_dim:
        width = mixer.indexer_dim
        yield Part("indexer.q_proj.weight", (spec.hidden_size, sizes["indexer_heads"] * width), "attention", "F32")
        yield Part("indexer.k_proj.weight", (spec.hidden_size, width), "attention", "F32")
        yield norm("indexer.q_norm", width)
        yield norm("indexer.k_norm", width)


FAMILIES: dict[str, Family] = {
    "bailingmoe3": Family(whole_block=_ling3, next_token=_ling3_next),
    "kimi-k3": Family(whole_block=_kimi_k3, outside_extra=_kimi_k3_outside),
    "minimax-01": Family(),
    "minimax-m3": Family(qk_norm="head", router_bias=True, more=_minimax_m3_indexer),
}
