"""What a model is: its shape, layer by layer, whatever it was read from.

A `ModelSpec` holds hyper-parameters alone. Its tensor list follows from them (`willitrun_estimator.tensors`), or was
read from a file and is carried in `tensors`, which then wins. Names follow GGUF, because that is what is loaded.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Role = Literal[
    "embedding",  # token table: looked up, never multiplied, stays in host memory in llama.cpp
    "output",  # the head
    "attention",  # projections of attention and recurrent mixers
    "ffn",  # dense feed-forward and shared experts
    "experts",  # routed experts, three-dimensional: one matrix per expert
    "router",
    "norm",  # norms, biases, scales and other vectors, kept in F32
    "extra",  # per-layer embeddings, next-token layers and whatever else a file lists
]


class Tensor(Struct, frozen=True):
    """One tensor as the file lists it."""

    name: str
    shape: tuple[int, ...]
    """In ggml order: the row length first."""
    layer: int | None
    """Block number; None for tensors outside the blocks."""
    role: Role
    type: str | None = None
    """The stored type (`Q4_K`, `F32` …) where a file fixes it; None where a quantization mix chooses."""

    @property
    def elements(self) -> int:
        """Number of weights."""
        product = 1
        for size in self.shape:
            product *= size
        return product


class Attention(Struct, frozen=True, kw_only=True, tag="attention"):
    """Softmax attention with grouped heads, over everything or over a window."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    """Sliding window in tokens; None is full attention."""
    chunked: bool = False
    """The window is a fixed chunk (Llama 4) and does not slide."""
    shares_kv: bool = False
    """Reads the cache of an earlier layer and keeps none of its own (Gemma 3n and 4)."""
    indexer_dim: int | None = None
    """Width of a sparse indexer's key cache (DeepSeek sparse attention), None without one."""


class Mla(Struct, frozen=True, kw_only=True, tag="mla"):
    """Multi-head latent attention: one compressed row of `kv_rank + rope_dim` per token."""

    heads: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    q_rank: int | None = None
    indexer_heads: int | None = None
    indexer_dim: int | None = None


class Recurrent(Struct, frozen=True, kw_only=True, tag="recurrent"):
    """A mixer whose state does not grow with the context."""

    kind: Literal["mamba1", "mamba2", "gated-delta-net", "kda", "shortconv", "lightning", "rwkv"]
    conv_elements: int
    """F32 elements of the convolution state, per sequence."""
    state_elements: int
    """F32 elements of the recurrent state, per sequence."""
    inner_dim: int = 0
    heads: int = 0
    head_dim: int = 0
    state_dim: int = 0
    groups: int = 0
    conv_kernel: int = 0


class NoMixer(Struct, frozen=True, kw_only=True, tag="none"):
    """A layer without attention or state (a feed-forward layer of Nemotron-H)."""


class Dense(Struct, frozen=True, kw_only=True, tag="dense"):
    """A feed-forward network."""

    width: int
    gated: bool = True


class Moe(Struct, frozen=True, kw_only=True, tag="moe"):
    """Routed experts, with an optional shared one."""

    experts: int
    experts_used: int
    width: int
    shared_width: int = 0
    gated: bool = True


class NoFfn(Struct, frozen=True, kw_only=True, tag="none"):
    """A layer that is a mixer alone."""


Mixer = Attention | Mla | Recurrent | NoMixer
Ffn = Dense | Moe | NoFfn


class Layer(Struct, frozen=True, kw_only=True):
    """One block: what mixes tokens, and what transforms each of them.

    `mixers` has two entries where attention and a recurrent mixer run side by side (Falcon-H1).
    """

    mixers: tuple[Mixer, ...]
    ffn: Ffn


class ModelSpec(Struct, frozen=True, kw_only=True):
    """A model's shape and identity. `layers` repeats the same few `Layer` objects."""

    name: str
    """Catalog name: lower case, as people type it: `llama-3.1-8b-instruct`."""
    title: str
    """As its makers write it: `Llama 3.1 8B Instruct`."""
    architecture: str
    """GGUF `general.architecture`: `llama`, `qwen3moe`, `kimi-linear`."""
    source: str
    """Where the shape comes from: `catalog`, a file's path, `hf:ORG/REPO`, `ollama:NAME`."""
    hidden_size: int
    vocab_size: int
    tied_embeddings: bool
    max_context_tokens: int
    layers: tuple[Layer, ...]
    mtp_layers: int = 0
    """Next-token-prediction layers: in the file and in the block count, not loaded by default."""
    checkpoint_mtp_layers: int = 0
    """Those of the published checkpoint that its GGUF files leave out (`skip_mtp` in conversion/deepseek.py)."""
    traits: tuple[str, ...] = ()
    """What changes the tensor list beyond the shape: `qk-norm`, `qkv-bias`, `post-norm`, `fused-qkv` …"""
    sizes: tuple[tuple[str, int], ...] = ()
    """Further sizes that one architecture's tensor list needs: (("per_layer_dim", 256), …)."""
    tensors: tuple[Tensor, ...] | None = None
    """The list of a real file; None when it is generated from the shape."""
    file_bytes: int | None = None
    """Size of the real file(s); None for a catalog model."""
    files: tuple[str, ...] = ()
    """The real file(s), the one an engine is given first; empty for a catalog model."""
    projector: str | None = None
    """Path of the vision or audio projector (`mmproj`) that lies beside a real file."""
    projector_bytes: int = 0
    quant: str | None = None
    """The one quantization a real file has; None when any can be chosen."""
    hf_id: str | None = None
    hf_architecture: str | None = None
    native_type: str = "bf16"
    params: int | None = None
    """Published parameter count of the text model, for display and checks."""
    non_text_params: int = 0
    """Vision and audio towers: in the checkpoint, in a separate projector file for llama.cpp."""
    aliases: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    """`vision`, `tools`, `reasoning`, `code`, `embedding` …"""
    license: str | None = None
    release_date: str | None = None
    gguf_repos: tuple[str, ...] = ()
    canonical: bool = False
    """A well-known instruct release of its maker: ranked before base and derived models."""
    sources: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    """Sentences the reader must know: an unknown architecture, an assumption about the file."""

    @property
    def block_count(self) -> int:
        """Blocks that are loaded (next-token layers not counted)."""
        return len(self.layers)
