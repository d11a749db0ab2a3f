"""Tensor lists of the ways to mix tokens: attention, latent attention, recurrences.

Names and shapes are those that llama.cpp's converters write (`conversion/` and `src/models/` of
https://github.com/ggml-org/llama.cpp, commit 0c1e57098).
"""

from __future__ import annotations

from collections.abc import Iterator

from willitrun_catalog.model import Attention, Layer, Mla, Recurrent
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.tensors.part import Part, bare, bias, matrix, norm


def only_attention(layer: Layer) -> Attention:
    """Return the mixer of a layer that has attention alone. Raises EstimatorError for a layer with anything else."""
    mixer = layer.mixers[0]
    if not isinstance(mixer, Attention):
        raise EstimatorError(f"a layer with {type(mixer).__name__} where the architecture has attention alone")
    return mixer


def attention(  # noqa: C901
    hidden: int,
    mixer: Attention,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: str | None = None,
    fused: bool = False,
    gated_query: bool = False,
    sinks: bool = False,
    gate: int = 0,
) -> Iterator[Part]:
    """Give grouped-head attention.

    `qk_norm` is `head` (one scale for every head), `full` (over all heads at once) or `each` (a row per head);
    `fused` keeps q, k and v in one matrix; `gated_query` doubles q by an output gate; `gate` is the width of a
    separate output gate.
    """
    query, key = mixer.heads * mixer.key_dim, mixer.kv_heads * mixer.key_dim
    value = mixer.kv_heads * mixer.value_dim
    if gated_query:
        query *= 2
    if fused:
        yield matrix("attn_qkv", hidden, query + key + value)
        if qkv_bias:
            yield bias("attn_qkv", query + key + value)
    else:
        yield matrix("attn_q", hidden, query)
        yield matrix("attn_k", hidden, key)
        yield matrix("attn_v", hidden, value)
        if qkv_bias:
            yield bias("attn_q", query)
            yield bias("attn_k", key)
            yield bias("attn_v", value)
    if qk_norm == "head":
        yield norm("attn_q_norm", mixer.key_dim)
        yield norm("attn_k_norm", mixer.key_dim)
    elif qk_norm == "full":
        yield norm("attn_q_norm", query)
        yield norm("attn_k_norm", key)
    elif qk_norm == "each":
        yield norm("attn_q_norm", mixer.key_dim, mixer.heads)
        yield norm("attn_k_norm", mixer.key_dim, mixer.kv_heads)
    if gate:
        yield matrix("attn_gate", hidden, gate)
    if sinks:
        yield Part("attn_sinks.weight", (mixer.heads,), "norm")
    yield matrix("attn_output", mixer.heads * mixer.value_dim, hidden)
    if output_bias:
        yield bias("attn_output", hidden)


def latent(hidden: int, mixer: Mla) -> Iterator[Part]:
    """Give multi-head latent attention, with the key and value expansions split per head as GGUF has them."""
    query = mixer.heads * (mixer.nope_dim + mixer.rope_dim)
    if mixer.q_rank:
        yield norm("attn_q_a_norm", mixer.q_rank)
        yield matrix("attn_q_a", hidden, mixer.q_rank)
        yield matrix("attn_q_b", mixer.q_rank, query)
    else:
        yield matrix("attn_q", hidden, query)
    yield norm("attn_kv_a_norm", mixer.kv_rank)
    yield matrix("attn_kv_a_mqa", hidden, mixer.kv_rank + mixer.rope_dim)
    yield matrix("attn_k_b", mixer.nope_dim, mixer.kv_rank, mixer.heads)
    yield matrix("attn_v_b", mixer.kv_rank, mixer.value_dim, mixer.heads)
    yield matrix("attn_output", mixer.heads * mixer.value_dim, hidden)


def indexer(hidden: int, mixer: Mla) -> Iterator[Part]:
    """Give the sparse indexer of DeepSeek 3.2: which tokens a query looks at."""
    heads, width = mixer.indexer_heads or 0, mixer.indexer_dim or 0
    yield norm("indexer.k_norm", width)
    yield bias("indexer.k_norm", width)
    yield matrix("indexer.proj", hidden, heads)
    yield matrix("indexer.attn_k", hidden, width)
    yield matrix("indexer.attn_q_b", mixer.q_rank or hidden, heads * width)


def mamba1(hidden: int, mixer: Recurrent, *, inner_norms: bool = False) -> Iterator[Part]:
    """Give a Mamba block; `heads` holds the rank of the time step. Jamba normalises dt, B and C as well."""
    inner, state, rank = mixer.inner_dim, mixer.state_dim, mixer.heads
    yield matrix("ssm_in", hidden, 2 * inner)
    yield matrix("ssm_conv1d", mixer.conv_kernel, inner)
    yield bias("ssm_conv1d", inner)
    yield matrix("ssm_x", inner, rank + 2 * state)
    yield matrix("ssm_dt", rank, inner)
    yield bias("ssm_dt", inner)
    if inner_norms:
        yield norm("ssm_dt_norm", rank)
        yield norm("ssm_b_norm", state)
        yield norm("ssm_c_norm", state)
    yield bare("ssm_a", state, inner)
    yield bare("ssm_d", inner)
    yield matrix("ssm_out", inner, hidden)


def mamba2(hidden: int, mixer: Recurrent, *, gated_norm: bool = True) -> Iterator[Part]:
    """Give a Mamba-2 block."""
    inner, channels = mixer.inner_dim, mixer.inner_dim + 2 * mixer.groups * mixer.state_dim
    yield matrix("ssm_in", hidden, inner + channels + mixer.heads)
    yield matrix("ssm_conv1d", mixer.conv_kernel, channels)
    yield bias("ssm_conv1d", channels)
    yield bias("ssm_dt", mixer.heads)
    yield bare("ssm_a", 1, mixer.heads)
    yield bare("ssm_d", 1, mixer.heads)
    if gated_norm:
        yield norm("ssm_norm", inner // mixer.groups, mixer.groups)
    yield matrix("ssm_out", inner, hidden)


def gated_delta_net(hidden: int, mixer: Recurrent, *, joined_beta: bool) -> Iterator[Part]:
    """Give a gated delta net of Qwen3-Next (`joined_beta`) or Qwen3.5.

    `heads` of `head_dim` are the value heads, `groups` of `state_dim` the key heads.
    """
    keys, values = mixer.groups * mixer.state_dim, mixer.heads * mixer.head_dim
    yield matrix("attn_qkv", hidden, 2 * keys + values)
    yield matrix("attn_gate", hidden, values)
    if joined_beta:
        yield matrix("ssm_ba", hidden, 2 * mixer.heads)
    else:
        yield matrix("ssm_beta", hidden, mixer.heads)
        yield matrix("ssm_alpha", hidden, mixer.heads)
    yield matrix("ssm_conv1d", mixer.conv_kernel, 2 * keys + values)
    yield bias("ssm_dt", mixer.heads)
    yield bare("ssm_a", mixer.heads)
    yield norm("ssm_norm", mixer.head_dim)
    yield matrix("ssm_out", values, hidden)


def kimi_delta(hidden: int, mixer: Recurrent) -> Iterator[Part]:
    """Give Kimi's delta attention: low-rank gates f and g, a convolution each for q, k and v."""
    width = mixer.heads * mixer.head_dim
    for stream in "qkv":
        yield matrix(f"ssm_conv1d_{stream}", mixer.conv_kernel, 1, width)
    for stream in "qkv":
        yield matrix(f"attn_{stream}", hidden, width)
    yield matrix("ssm_f_a", hidden, mixer.head_dim)
    yield matrix("ssm_f_b", mixer.head_dim, width)
    yield matrix("ssm_beta", hidden, mixer.heads)
    yield bare("ssm_a", 1, mixer.heads)
    yield bias("ssm_dt", width)
    yield matrix("ssm_g_a", hidden, mixer.head_dim)
    yield matrix("ssm_g_b", mixer.head_dim, width)
    yield norm("ssm_norm", mixer.head_dim)
    yield matrix("attn_output", width, hidden)


def short_convolution(hidden: int, mixer: Recurrent) -> Iterator[Part]:
    """Give the gated short convolution of LFM2."""
    yield matrix("shortconv.conv", mixer.conv_kernel, hidden)
    yield matrix("shortconv.in_proj", hidden, 3 * hidden)
    yield matrix("shortconv.out_proj", hidden, hidden)


def lightning(hidden: int, mixer: Recurrent) -> Iterator[Part]:
    """Give the linear attention of MiniMax-Text-01."""
    width = mixer.heads * mixer.head_dim
    yield norm("attn_norm_2", width)
    yield matrix("attn_qkv", hidden, 3 * width)
    yield matrix("attn_gate", hidden, width)
    yield matrix("attn_output", width, hidden)


def full_rank_delta(hidden: int, mixer: Recurrent, *, gate: str, forget_rank: int = 0) -> Iterator[Part]:
    """Give delta attention whose gates are not low-rank: Ling 3.0 (both gates), Kimi K3 (the output gate alone).

    `gate` names the output gate, `forget_rank` is the rank of the forget gate, 0 for a full one.
    """
    width = mixer.heads * mixer.head_dim
    for stream in "qkv":
        yield matrix(f"ssm_conv1d_{stream}", mixer.conv_kernel, 1, width)
        yield matrix(f"attn_{stream}", hidden, width)
    if forget_rank:
        yield matrix("ssm_f_a", hidden, forget_rank)
        yield matrix("ssm_f_b", forget_rank, width)
    else:
        yield matrix("ssm_f_a", hidden, width)
    yield matrix("ssm_beta", hidden, mixer.heads)
    yield bias("ssm_dt", width)
    yield matrix(gate, hidden, width)
    yield norm("ssm_norm", mixer.head_dim)
    yield matrix("attn_output", width, hidden)
