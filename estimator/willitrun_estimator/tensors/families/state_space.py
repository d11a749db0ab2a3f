"""Mamba-2 beside or between other layers: Falcon-H1, Nemotron-H."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from willitrun_catalog.model import Attention, Dense, Layer, ModelSpec, Moe, Recurrent
from willitrun_estimator.tensors import mixers
from willitrun_estimator.tensors.family import ONE_NORM, Family
from willitrun_estimator.tensors.feed_forward import dense, experts
from willitrun_estimator.tensors.part import Part, bare, bias, matrix, norm


def _falcon_h1(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    hidden = spec.hidden_size
    yield norm("attn_norm", hidden)
    # This architecture's files have no suffix here.
    yield bare("ffn_norm", hidden)
    for mixer in layer.mixers:
        if isinstance(mixer, Attention):
            yield from mixers.attention(hidden, mixer)
        elif isinstance(mixer, Recurrent):
            yield from mixers.mamba2(hidden, mixer, gated_norm="no-gated-norm" not in spec.traits)
    if isinstance(layer.ffn, Dense):
        yield from dense(hidden, layer.ffn.width)


def _routed(spec: ModelSpec, moe: Moe) -> Iterator[Part]:
    hidden, latent = spec.hidden_size, dict(spec.sizes).get("latent_dim", 0)
    yield matrix("ffn_gate_inp", hidden, moe.experts)
    yield bias("exp_probs_b", moe.experts)
    if latent:
        yield matrix("ffn_latent_down", hidden, latent)
        yield matrix("ffn_latent_up", latent, hidden)
    yield from experts(latent or hidden, moe)
    yield from dense(hidden, moe.shared_width, gated=moe.gated, suffix="_shexp")


def _nemotron_h_moe(spec: ModelSpec, layer: Layer, _index: int) -> Iterator[Part]:
    hidden = spec.hidden_size
    yield norm("attn_norm", hidden)
    for mixer in layer.mixers:
        if isinstance(mixer, Attention):
            yield from mixers.attention(hidden, mixer)
        elif isinstance(mixer, Recurrent):
            yield from mixers.mamba2(hidden, mixer)
    if isinstance(layer.ffn, Moe):
        yield from _routed(spec, layer.ffn)


def _nemotron_h_next(spec: ModelSpec, layer: Layer, index: int) -> Iterator[Part]:
    # Attention and experts are two layers of the checkpoint, folded into one block.
    routed = next(found.ffn for found in spec.layers if isinstance(found.ffn, Moe))
    yield from _nemotron_h_moe(spec, structs.replace(layer, ffn=routed), index)
    yield norm("post_attention_norm", spec.hidden_size)
    yield matrix("nextn.eh_proj", 2 * spec.hidden_size, spec.hidden_size)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        yield norm(f"nextn.{name}", spec.hidden_size)


FAMILIES: dict[str, Family] = {
    "falcon-h1": Family(whole_block=_falcon_h1),
    "nemotron_h": Family(norms=ONE_NORM),
    "nemotron_h_moe": Family(whole_block=_nemotron_h_moe, next_token=_nemotron_h_next),
}
