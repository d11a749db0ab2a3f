"""An architecture's tensor list, told by its differences from the plain transformer block."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from willitrun_catalog.model import Attention, Dense, Layer, Mixer, Mla, ModelSpec, Moe, NoFfn, NoMixer, Recurrent
from willitrun_estimator.tensors import mixers
from willitrun_estimator.tensors.feed_forward import feed_forward
from willitrun_estimator.tensors.part import BlockBuilder, OutsideBuilder, Part, bias, matrix, norm, scale

PRE_NORMS = ("attn_norm", "ffn_norm")
SANDWICH_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
MIDDLE_NORMS = ("attn_norm", "post_attention_norm")
ONE_NORM = ("attn_norm",)


class Family(Struct, frozen=True, kw_only=True):
    """What sets an architecture apart. An option that is None follows the model's trait of that name."""

    norms: tuple[str, ...] = PRE_NORMS
    norm_bias: bool | None = False
    qkv_bias: bool | None = None
    """Trait `qkv-bias`."""
    output_bias: bool | None = None
    """Trait `output-bias`: on the attention's output projection."""
    qk_norm: str | None = None
    """`head`, `full` or `each` (see `mixers.attention`); with the trait `qk-norm`, None means `qk_norm_kind`."""
    qk_norm_kind: str = "head"
    fused_qkv: bool | None = False
    """Trait `fused-qkv`: one matrix for q, k and v."""
    gated_query: bool = False
    attention_gate: str | None = None
    """A separate output gate: `value` has the width of all heads, `heads` one number per head."""
    sinks: bool | None = False
    """Trait `sinks`, then on sliding-window blocks alone."""
    joined_gate_up: bool = False
    ffn_bias: bool | None = None
    router_bias: bool | None = False
    """Trait `router-bias`: the balancing bias `exp_probs_b`."""
    bare_router_bias: bool = False
    """Its name has no suffix."""
    shared_gate: bool = False
    expert_bias: bool = False
    inner_norms: bool = False
    """Mamba: dt, B and C are normalised."""
    joined_beta: bool = False
    last_norm: str = "output_norm"
    """The norm after the blocks."""
    head_bias: bool = False
    more: BlockBuilder | None = None
    """Further tensors of a block."""
    whole_block: BlockBuilder | None = None
    """The block itself, where nothing of the plain one is left."""
    outside_extra: OutsideBuilder | None = None
    next_token: BlockBuilder | None = None
    """The next-token block, where it is not a plain block with the usual projections."""

    def flag(self, option: bool | None, trait: str, spec: ModelSpec) -> bool:
        """Read an option that may be left to a trait of the model."""
        return trait in spec.traits if option is None else option


def block(family: Family, spec: ModelSpec, layer: Layer, index: int) -> Iterator[Part]:
    """List the tensors of one block."""
    if family.whole_block is not None:
        yield from family.whole_block(spec, layer, index)
        return
    hidden = spec.hidden_size
    biased = family.flag(family.norm_bias, "norm-bias", spec)
    mixes = not all(isinstance(mixer, NoMixer) for mixer in layer.mixers)
    for name in family.norms:
        about_ffn = "ff" in name
        if len(family.norms) == 1 or (about_ffn and not isinstance(layer.ffn, NoFfn)) or (mixes and not about_ffn):
            yield from scale(name, hidden, biased=biased)
    for mixer in layer.mixers:
        yield from _mixer(family, spec, mixer)
    if not isinstance(layer.ffn, NoFfn):
        yield from feed_forward(
            hidden,
            layer.ffn,
            joined=family.joined_gate_up,
            biased=family.flag(family.ffn_bias, "ffn-bias", spec),
            router_bias=family.flag(family.router_bias, "router-bias", spec),
            bare_router_bias=family.bare_router_bias,
            shared_gate=family.shared_gate,
            expert_type=expert_type(spec),
        )
        if family.expert_bias and isinstance(layer.ffn, Moe):
            yield from _expert_biases(hidden, layer.ffn)
    if family.more is not None:
        yield from family.more(spec, layer, index)


def expert_type(spec: ModelSpec) -> str | None:
    """Find the type in which the makers published the routed experts, which converters keep under every label."""
    return "MXFP4" if spec.native_type == "mxfp4" else None


def _expert_biases(hidden: int, moe: Moe) -> Iterator[Part]:
    yield bias("ffn_gate_inp", moe.experts)
    yield bias("ffn_gate_exps", moe.width, moe.experts)
    yield bias("ffn_up_exps", moe.width, moe.experts)
    yield bias("ffn_down_exps", hidden, moe.experts)


def _mixer(family: Family, spec: ModelSpec, mixer: Mixer) -> Iterator[Part]:
    hidden = spec.hidden_size
    if isinstance(mixer, Attention):
        sinks = family.sinks
        yield from mixers.attention(
            hidden,
            mixer,
            qkv_bias=family.flag(family.qkv_bias, "qkv-bias", spec),
            output_bias=family.flag(family.output_bias, "output-bias", spec),
            qk_norm=family.qk_norm or (family.qk_norm_kind if "qk-norm" in spec.traits else None),
            fused=family.flag(family.fused_qkv, "fused-qkv", spec),
            gated_query=family.gated_query,
            sinks="sinks" in spec.traits and mixer.window is not None if sinks is None else sinks,
            gate={"value": mixer.heads * mixer.value_dim, "heads": mixer.heads}.get(family.attention_gate or "", 0),
        )
    elif isinstance(mixer, Mla):
        yield from mixers.latent(hidden, mixer)
        if mixer.indexer_heads:
            yield from mixers.indexer(hidden, mixer)
    elif isinstance(mixer, Recurrent):
        yield from _recurrent(family, spec, mixer)


def _recurrent(family: Family, spec: ModelSpec, mixer: Recurrent) -> Iterator[Part]:
    hidden = spec.hidden_size
    if mixer.kind == "mamba1":
        yield from mixers.mamba1(hidden, mixer, inner_norms=family.inner_norms)
    elif mixer.kind == "mamba2":
        yield from mixers.mamba2(hidden, mixer, gated_norm="no-gated-norm" not in spec.traits)
    elif mixer.kind == "gated-delta-net":
        yield from mixers.gated_delta_net(hidden, mixer, joined_beta=family.joined_beta)
    elif mixer.kind == "kda":
        yield from mixers.kimi_delta(hidden, mixer)
    elif mixer.kind == "shortconv":
        yield from mixers.short_convolution(hidden, mixer)
    else:
        yield from mixers.lightning(hidden, mixer)


def next_token_layer(spec: ModelSpec) -> Layer:
    """Describe a next-token block: a block like the last one with softmax attention."""
    candidates = [found for found in reversed(spec.layers) if isinstance(found.mixers[0], (Attention, Mla))]
    # Where blocks share an indexer, the next-token block has its own.
    indexed = [found for found in candidates if isinstance(found.mixers[0], Mla) and found.mixers[0].indexer_heads]
    layer = (indexed or candidates or [spec.layers[-1]])[0]
    if "next-token-dense" in spec.traits:
        widths = [found.ffn.width for found in spec.layers if isinstance(found.ffn, Dense)]
        layer = Layer(mixers=layer.mixers, ffn=Dense(width=widths[0])) if widths else layer
    return layer


def next_token_block(family: Family, spec: ModelSpec, index: int) -> Iterator[Part]:
    """List the tensors of a next-token block and of its projections.

    With the trait `next-token-head` the checkpoint stores copies of the token table and the head beside it.
    """
    layer = next_token_layer(spec)
    if family.next_token is not None:
        yield from family.next_token(spec, layer, index)
        return
    yield from block(family, spec, layer, index)
    yield from projections(spec, first=index == spec.block_count)


def projections(spec: ModelSpec, *, first: bool = True) -> Iterator[Part]:
    """List what joins hidden state and next token; the first of these blocks holds the copies of table and head."""
    hidden = spec.hidden_size
    yield matrix("nextn.eh_proj", 2 * hidden, hidden)
    yield norm("nextn.enorm", hidden)
    yield norm("nextn.hnorm", hidden)
    yield norm("nextn.shared_head_norm", hidden)
    if first and "next-token-head" in spec.traits:
        yield matrix("nextn.embed_tokens", hidden, spec.vocab_size)
        yield matrix("nextn.shared_head_head", hidden, spec.vocab_size)


def outside(family: Family, spec: ModelSpec) -> Iterator[Part]:
    """List the tensors outside the blocks: table, head, last norm, tables of rotary factors."""
    hidden = spec.hidden_size
    yield matrix("token_embd", hidden, spec.vocab_size)
    yield from scale(family.last_norm, hidden, biased=family.flag(family.norm_bias, "norm-bias", spec))
    if not spec.tied_embeddings:
        yield matrix("output", hidden, spec.vocab_size)
        if family.head_bias:
            yield bias("output", spec.vocab_size)
    rotary = _rotary_dim(spec)
    if "rope-freqs" in spec.traits:
        yield norm("rope_freqs", rotary // 2)
    if "rope-factors" in spec.traits:
        yield norm("rope_factors_long", rotary // 2)
        yield norm("rope_factors_short", rotary // 2)
    if family.outside_extra is not None:
        yield from family.outside_extra(spec)


def _rotary_dim(spec: ModelSpec) -> int:
    sizes = dict(spec.sizes)
    if "rotary_dim" in sizes:
        return sizes["rotary_dim"]
    attention = [mixer for layer in spec.layers for mixer in layer.mixers if isinstance(mixer, Attention)]
    # The factors are those of full attention where windowed blocks have other heads (Gemma 4).
    return next(
        (mixer.key_dim for mixer in attention if mixer.window is None), attention[0].key_dim if attention else 0
    )
