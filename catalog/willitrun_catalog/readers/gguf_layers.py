"""What every block of a GGUF file does, from its hyper-parameters and the tensors it has.

The tensors say which kind of mixer a block holds, so that an architecture this version has never heard of is still
answered; the hyper-parameters say how large it is. Sizes of states follow `n_embd_r` and `n_embd_s` in
src/llama-hparams.cpp of https://github.com/ggml-org/llama.cpp (commit 0c1e57098).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from willitrun_catalog.model import (
    Attention,
    Dense,
    Ffn,
    Layer,
    Mixer,
    Mla,
    Moe,
    NoFfn,
    NoMixer,
    Recurrent,
)
from willitrun_catalog.readers import patterns
from willitrun_catalog.readers.hyper import Hyper

Shapes = Mapping[str, tuple[int, ...]]
"""The tensors of one block: name without `blk.N.`, and shape."""

_KDA_DEFAULT_TAPS = 3
_QUERIES = ("attn_q.", "attn_qkv.", "attn_q_a.", "attn_q_b.", "attn_kv_a_mqa.", "cross_attn_q.")
_GLM_DSA_LONG = 1_048_576
"""Context from which glm-dsa files without `indexer.types` share an indexer among four blocks (glm-dsa.cpp)."""


def layers(hyper: Hyper, blocks: Sequence[Shapes]) -> tuple[Layer, ...]:
    """Build the layers that are loaded, one object for equal ones."""
    shape = _Shape(hyper)
    kept: dict[Layer, Layer] = {}
    built = []
    for number, tensors in enumerate(blocks):
        index = number % hyper.blocks  # a looped model has more layers than blocks
        layer = Layer(mixers=shape.mixers(index, tensors), ffn=shape.feed_forward(index, tensors))
        built.append(kept.setdefault(layer, layer))
    return tuple(built)


class _Shape:
    """The hyper-parameters of a model, per block where they differ."""

    def __init__(self, hyper: Hyper) -> None:
        self.hyper = hyper
        self.hidden = hyper.size("embedding_length")
        self.heads = hyper.per_layer("attention.head_count")
        self.kv_heads = hyper.per_layer("attention.head_count_kv", self.heads)
        self.windows = patterns.windows(hyper)
        self.by_interval = patterns.recurrent_by_interval(hyper)
        self.sharing = patterns.first_sharing_block(hyper)
        self.experts_used = hyper.per_layer("expert_used_count")
        self.indexers = self._indexers()
        first = next((heads for heads in self.heads if heads), 0)
        even = self.hidden // first if first else 0
        self.key_dim = hyper.number("attention.key_length", even)
        self.value_dim = hyper.number("attention.value_length", even)

    def _indexers(self) -> tuple[bool, ...]:
        hyper = self.hyper
        if hyper.architecture == "minimax-m3":
            dense = hyper.number("leading_dense_block_count")
            return tuple(index >= dense for index in range(hyper.blocks))
        listed = hyper.flags("attention.indexer.types")
        if listed is not None:
            return listed
        if hyper.architecture == "glm-dsa" and hyper.number("context_length") >= _GLM_DSA_LONG:
            return tuple(index < 2 or (index - 2) % 4 == 0 for index in range(hyper.blocks))  # noqa: PLR2004
        return (True,) * hyper.blocks

    def mixers(self, index: int, tensors: Shapes) -> tuple[Mixer, ...]:
        """Tell the mixers of a block from the tensors it has."""
        recurrent = self._recurrent(index, tensors)
        found: list[Mixer] = []
        if recurrent is None or "ssm_in.weight" in tensors:
            attention = self._attention(index, tensors)
            if attention is not None:
                found.append(attention)
        if recurrent is not None:
            found.append(recurrent)
        return tuple(found) or (NoMixer(),)

    def _attention(self, index: int, tensors: Shapes) -> Mixer | None:
        if not self.kv_heads[index] or not any(name.startswith(_QUERIES) for name in tensors):
            return None
        # DeepSeek V4 slides a window only where it does not compress what lies before it.
        hyper, window = self.hyper, None if "attn_compressor_kv.weight" in tensors else self.windows[index]
        if hyper.number("attention.key_length_mla") and hyper.number("attention.kv_lora_rank"):
            return self._latent(index, window)
        swa = "_swa" if window else ""
        return Attention(
            heads=self.heads[index],
            kv_heads=self.kv_heads[index],
            key_dim=hyper.number(f"attention.key_length{swa}", self.key_dim),
            value_dim=hyper.number(f"attention.value_length{swa}", self.value_dim),
            window=window,
            chunked=bool(window) and patterns.WINDOWS[hyper.architecture].chunked,
            shares_kv=index >= self.sharing or hyper.architecture in patterns.CACHELESS,
            indexer_dim=self._indexer_dim(index, tensors),
        )

    def _latent(self, index: int, window: int | None) -> Mixer:
        hyper = self.hyper
        rank = hyper.number("attention.kv_lora_rank_swa" if window else "attention.kv_lora_rank")
        rank = rank or hyper.number("attention.kv_lora_rank")
        rope = self.key_dim - hyper.number("attention.kv_lora_rank")
        if rope < 0:
            raise hyper.error("attention.key_length", f"is {self.key_dim}, less than the rank {rank} it contains")
        if window:
            # A windowed latent cache: one compressed row per token, no separate values.
            return Attention(heads=self.heads[index], kv_heads=1, key_dim=rank + rope, value_dim=0, window=window)
        has_indexer = self.indexers[index] and hyper.number("attention.indexer.head_count") > 0
        return Mla(
            heads=self.heads[index],
            kv_rank=rank,
            rope_dim=rope,
            nope_dim=max(0, hyper.number("attention.key_length_mla") - rope),
            value_dim=hyper.number("attention.value_length_mla"),
            q_rank=hyper.number("attention.q_lora_rank") or None,
            indexer_heads=hyper.number("attention.indexer.head_count") if has_indexer else None,
            indexer_dim=hyper.number("attention.indexer.key_length") if has_indexer else None,
        )

    def _indexer_dim(self, index: int, tensors: Shapes) -> int | None:
        if not self.indexers[index] or not any(name.startswith("indexer") for name in tensors):
            return None
        return self.hyper.number("attention.indexer.key_length") or None

    def _recurrent(self, index: int, tensors: Shapes) -> Recurrent | None:
        """Build the recurrent mixer of a block, or None."""
        if "shortconv.conv.weight" in tensors:
            taps = self.hyper.number("shortconv.l_cache") or tensors["shortconv.conv.weight"][0]
            return Recurrent(
                kind="shortconv", conv_elements=self.hidden * (taps - 1), state_elements=0, conv_kernel=taps
            )
        if any(name.startswith("time_mix_") for name in tensors):
            return self._rwkv()
        if "ssm_conv1d_q.weight" in tensors:
            return self._kda()
        if "ssm_conv1d.weight" in tensors:
            return self._state_space(tensors)
        if self.hyper.architecture == "minimax-01" and self.by_interval is not None and self.by_interval[index]:
            heads, size = self.heads[index], self.key_dim
            return Recurrent(
                kind="lightning",
                conv_elements=0,
                state_elements=size * size * heads,
                inner_dim=heads * size,
                heads=heads,
                head_dim=size,
                state_dim=size,
            )
        return None

    def _rwkv(self) -> Recurrent:
        size = self.hyper.size("wkv.head_size")
        shifts = self.hyper.number("token_shift_count", 2)
        return Recurrent(
            kind="rwkv",
            conv_elements=shifts * self.hidden,
            state_elements=self.hidden * size,
            heads=self.hidden // size,
            head_dim=size,
        )

    def _kda(self) -> Recurrent:
        hyper, heads = self.hyper, self.heads[0]
        size = hyper.size("kda.head_dim")
        taps = hyper.number("ssm.conv_kernel")
        return Recurrent(
            kind="kda",
            conv_elements=3 * (taps - 1 if taps else _KDA_DEFAULT_TAPS) * heads * size,
            state_elements=size * size * heads,
            inner_dim=heads * size,
            heads=heads,
            head_dim=size,
            state_dim=size,
            conv_kernel=taps,
        )

    def _state_space(self, tensors: Shapes) -> Recurrent:
        hyper = self.hyper
        taps, inner = hyper.size("ssm.conv_kernel"), hyper.size("ssm.inner_size")
        state, groups = hyper.size("ssm.state_size"), hyper.number("ssm.group_count")
        heads = hyper.number("ssm.time_step_rank")
        delta = any(name in tensors for name in ("ssm_ba.weight", "ssm_alpha.weight", "ssm_beta.weight"))
        one = not delta and "ssm_x.weight" in tensors
        conv = (taps - 1) * (inner + 2 * groups * state) + self._hash_embedding_history(tensors)
        return Recurrent(
            kind="gated-delta-net" if delta else "mamba1" if one else "mamba2",
            conv_elements=conv,
            state_elements=state * inner,
            inner_dim=inner,
            heads=heads,
            head_dim=0 if one or not heads else inner // heads,
            state_dim=state,
            groups=groups,
            conv_kernel=taps,
        )

    def _hash_embedding_history(self, tensors: Shapes) -> int:
        """Rows that an n-gram embedding module keeps beside the convolution (`ple_conv_state`, Qwen 4)."""
        if "ple_conv1d.weight" not in tensors:
            return 0
        hyper = self.hyper
        taps, span = hyper.number("ple.conv_kernel"), hyper.number("ple.ngram_size")
        return max(0, taps - 1) * span * max(1, hyper.number("hyper_connection.count")) * self.hidden

    def feed_forward(self, index: int, tensors: Shapes) -> Ffn:
        """Read the feed-forward network off its tensors."""
        down = tensors.get("ffn_down_exps.weight")
        dense = tensors.get("ffn_down.weight")
        shared = tensors.get("ffn_down_shexp.weight")
        beside = (shared or dense or (0,))[0]
        if down is not None:
            experts = down[2] if len(down) > 2 else max(1, self.hyper.number("expert_count"))  # noqa: PLR2004
            gated = any(name in tensors for name in ("ffn_gate_exps.weight", "ffn_gate_up_exps.weight"))
            used = self.experts_used[index] or experts
            return Moe(
                experts=experts,
                experts_used=min(used, experts),
                width=down[0],
                shared_width=beside,
                gated=gated,
            )
        split = sum(name.startswith("ffn_down.") and name.endswith(".weight") for name in tensors) - (dense is not None)
        if split > 0:
            # Files before early 2024 kept every expert in a tensor of its own: `ffn_down.7.weight`.
            used = self.experts_used[index] or split
            return Moe(experts=split, experts_used=min(used, split), width=tensors["ffn_down.0.weight"][0])
        if dense is None:
            return NoFfn()
        up = tensors.get("ffn_up.weight")
        joined = up is not None and len(up) > 1 and up[1] == 2 * dense[0]
        return Dense(width=dense[0], gated=joined or "ffn_gate.weight" in tensors)
