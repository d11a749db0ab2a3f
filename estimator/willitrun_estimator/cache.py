"""Bytes of the KV cache, of the recurrent state and of the output buffer: exact, layer by layer.

The rules are those of llama.cpp's `llama_kv_cache`, `llama_kv_cache_iswa` and `llama_memory_recurrent`
(src/llama-kv-cache*.cpp, src/llama-memory-recurrent.cpp, src/llama-hparams.cpp, ggml 0.25).
"""

from __future__ import annotations

from collections import Counter

from willitrun_catalog.model import Attention, Layer, Mixer, Mla, ModelSpec, NoMixer, Recurrent
from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.placement import Settings

CELL_PADDING = 256
"""`GGML_PAD(n_ctx, 256)` in llama-context.cpp, and the same for a sliding-window cache."""

KV_TYPES: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}
"""Elements per block and bytes per block of every type that `--cache-type-k` takes (ggml-common.h)."""

WINDOW_IGNORED = frozenset({"llama", "phi3", "phimoe"})
"""Architectures whose file names a window that llama.cpp does not use.

src/models/phi3.cpp drops it; src/models/llama.cpp never reads `attention.sliding_window`, which Mistral 7B v0.1 and
Ministral 8B have.
"""

INDEXED_VALUES = frozenset({"glm5-next", "minimax-m3"})
"""Architectures whose indexer has an ordinary cache of one head, V included.

`llama_kv_cache_msa` and `llama_memory_hybrid_idx`; those of DeepSeek V3.2 and GLM-5 hold K alone.
"""
NEXT_TOKEN_CACHED = frozenset({"bailingmoe3", "nemotron_h", "nemotron_h_moe"})
"""Hybrid models whose attention cache has rows for next-token blocks too, whether these are loaded or not.

The filter of `llama_memory_hybrid` in src/llama-model.cpp leaves out recurrent blocks alone.
"""
BLOCKS_WITHOUT_ATTENTION = frozenset({"deci"})
"""Not hybrid models, whose cache leaves out other blocks: here one without attention has rows of no elements.

Without flash attention V is stored transposed, and every block's V has the width of the widest.
"""
CACHELESS = frozenset(
    (
        *(
            "bert",
            "modern-bert",
            "nomic-bert",
            "nomic-bert-moe",
            "neo-bert",
            "jina-bert-v2",
            "jina-bert-v3",
            "eurobert",
        ),
        *("gemma-embedding", "dream", "llada", "llada-moe", "rnd1"),
    ),
)
"""Encoders and diffusion models, which see a whole sequence at once: `llama_model::create_memory` gives them none."""


def pad(value: int, multiple: int) -> int:
    """Round `value` up to a multiple."""
    return -(-value // multiple) * multiple


def kv_row_bytes(kv_type: str, elements: int) -> int:
    """Bytes of one row of K or V; raises EstimatorError for an unknown type or a row that is not whole blocks."""
    if kv_type not in KV_TYPES:
        message = f"unknown KV cache type {kv_type!r}"
        raise EstimatorError(message, "known types: " + ", ".join(KV_TYPES))
    block, size = KV_TYPES[kv_type]
    if elements % block:
        message = f"a row of {elements} elements cannot be stored as {kv_type}, which has blocks of {block}"
        raise EstimatorError(message, "use --kv-type f16 for this model")
    return elements // block * size


def is_quantized(kv_type: str) -> bool:
    """Whether values of this type share a block with a scale."""
    return KV_TYPES[kv_type][0] > 1


ROW_PADDING = 512
"""`MATRIX_ROW_PADDING` of ggml-cuda.cu: a quantized tensor ends with the rest of a row of this many elements."""
TENSOR_ALIGNMENT = 128
"""`ggml_backend_cuda_buffer_type_get_alignment`."""


def padding_bytes(kv_type: str, elements: int) -> int:
    """Bytes that CUDA and ROCm add once to a quantized K or V tensor whose row is not a multiple of 512."""
    rest = elements % ROW_PADDING
    return kv_row_bytes(kv_type, ROW_PADDING - rest) if rest and is_quantized(kv_type) else 0


def stream_cells(settings: Settings, context_tokens: int | None = None) -> tuple[int, int]:
    """Cells of one stream of a full-attention cache, and the number of streams.

    A unified cache is one pool shared by all slots; otherwise each slot is a stream with its share of the context.
    """
    tokens = pad(settings.context_tokens if context_tokens is None else context_tokens, CELL_PADDING)
    if settings.kv_unified or settings.parallel == 1:
        return tokens, 1
    return pad(tokens // settings.parallel, CELL_PADDING) or CELL_PADDING, settings.parallel


def effective_window(spec: ModelSpec, mixer: Attention) -> int | None:
    """Give the window that llama.cpp really uses for this layer, None for full attention."""
    return None if spec.architecture in WINDOW_IGNORED else mixer.window


def window_cells(window: int, settings: Settings, full_cells: int) -> int:
    """Cells of one stream of a sliding-window cache: the windows of all its sequences and one micro-batch."""
    if settings.swa_full:
        return full_cells
    sequences = settings.parallel if settings.kv_unified else 1
    return pad(min(full_cells, window * sequences + settings.ubatch), CELL_PADDING)


def largest_value_row(spec: ModelSpec) -> int:
    """Elements of the widest V row: without flash attention every layer's transposed V has it."""
    return max(
        (m.kv_heads * m.value_dim for layer in spec.layers for m in layer.mixers if isinstance(m, Attention)),
        default=0,
    )


def cache_rows(spec: ModelSpec, mixer: Mixer, settings: Settings) -> tuple[tuple[str, int], ...]:
    """Type and elements of every row that one cell of this mixer's cache holds: K, V, an indexer's key."""
    if spec.architecture in CACHELESS:
        return ()
    if isinstance(mixer, Mla):
        # One compressed K row serves as V; the sparse indexer keeps a K row of its own.
        rows = [(settings.kv_type_k, mixer.kv_rank + mixer.rope_dim)]
    elif isinstance(mixer, Attention) and not mixer.shares_kv:
        values = mixer.kv_heads * mixer.value_dim if settings.flash_attention else largest_value_row(spec)
        rows = [(settings.kv_type_k, mixer.kv_heads * mixer.key_dim), (settings.kv_type_v, values)]
    elif isinstance(mixer, NoMixer) and spec.architecture in BLOCKS_WITHOUT_ATTENTION and not settings.flash_attention:
        return ((settings.kv_type_v, largest_value_row(spec)),)
    else:
        return ()
    if mixer.indexer_dim:
        rows.append((settings.kv_type_k, mixer.indexer_dim))
        if spec.architecture in INDEXED_VALUES:
            rows.append((settings.kv_type_v, mixer.value_dim))
    return tuple(rows)


def mixer_row_bytes(spec: ModelSpec, mixer: Mixer, settings: Settings) -> int:
    """Bytes that one cell of this mixer's cache takes."""
    return sum(kv_row_bytes(kv_type, elements) for kv_type, elements in cache_rows(spec, mixer, settings))


def layer_window(spec: ModelSpec, layer: Layer) -> int | None:
    """Give the sliding window of a layer's cache, None where it is as long as the context."""
    for mixer in layer.mixers:
        if isinstance(mixer, Attention):
            return effective_window(spec, mixer)
    return None


def layer_row_bytes(spec: ModelSpec, layer: Layer, settings: Settings) -> int:
    """Bytes of one cell of a layer's cache."""
    return sum(mixer_row_bytes(spec, mixer, settings) for mixer in layer.mixers)


def next_token_row_bytes(spec: ModelSpec, settings: Settings) -> int:
    """Bytes of one cell of what the cache holds for next-token blocks; they count with the last block."""
    if spec.architecture not in NEXT_TOKEN_CACHED:
        return 0
    rows = (layer_row_bytes(spec, layer, settings) for layer in spec.layers)
    return spec.mtp_layers * next((row for row in rows if row), 0)


def layer_kv_bytes(spec: ModelSpec, layer: Layer, settings: Settings, context_tokens: int | None = None) -> int:
    """KV cache bytes of one layer over all streams."""
    row = layer_row_bytes(spec, layer, settings)
    if not row:
        return 0
    cells, streams = stream_cells(settings, context_tokens)
    window = layer_window(spec, layer)
    if window is not None:
        cells = window_cells(window, settings, cells)
    return row * cells * streams


def kv_bytes(spec: ModelSpec, settings: Settings, context_tokens: int | None = None) -> int:
    """KV cache bytes of the whole model."""
    cells, streams = stream_cells(settings, context_tokens)
    beyond = next_token_row_bytes(spec, settings) * cells * streams
    return beyond + sum(layer_kv_bytes(spec, layer, settings, context_tokens) for layer in spec.layers)


def layer_padding_bytes(spec: ModelSpec, layer: Layer, settings: Settings, context_tokens: int) -> int:
    """Give what the tensors of a layer's cache take on a CUDA or ROCm device beyond their elements."""
    cells, streams = stream_cells(settings, context_tokens)
    window = layer_window(spec, layer)
    if window is not None:
        cells = window_cells(window, settings, cells)
    total = 0
    for mixer in layer.mixers:
        for kv_type, elements in cache_rows(spec, mixer, settings):
            size = kv_row_bytes(kv_type, elements) * cells * streams
            total += pad(size + padding_bytes(kv_type, elements), TENSOR_ALIGNMENT) - size
    return total


def layer_state_bytes(layer: Layer, settings: Settings, rollbacks: int = 0) -> int:
    """F32 bytes of a layer's convolution and recurrent states, one set per slot.

    `rollbacks` is the number of snapshots that speculative decoding keeps per slot (`n_rs_seq`).
    """
    elements = sum(m.conv_elements + m.state_elements for m in layer.mixers if isinstance(m, Recurrent))
    return 4 * elements * max(1, settings.parallel) * (1 + rollbacks)


def state_bytes(spec: ModelSpec, settings: Settings, rollbacks: int = 0) -> int:
    """Recurrent state bytes of the whole model; independent of the context and of the KV type."""
    counts = Counter(map(id, spec.layers))
    distinct = {id(layer): layer for layer in spec.layers}
    return sum([count * layer_state_bytes(distinct[key], settings, rollbacks) for key, count in counts.items()])


def output_bytes(spec: ModelSpec, settings: Settings) -> int:
    """Bytes of the logits buffer in host memory: one F32 row of the vocabulary per slot at start."""
    return 4 * spec.vocab_size * max(1, settings.parallel)
