"""Bytes of the KV cache, of the recurrent state and of the output buffer: exact, layer by layer.

The rules are those of llama.cpp's `llama_kv_cache`, `llama_kv_cache_iswa` and `llama_memory_recurrent`
(src/llama-kv-cache*.cpp, src/llama-memory-recurrent.cpp, src/llama-hparams.cpp, ggml 0.25).
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

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

INDEXED_VALUES = frozenset({"minimax-m3"})
"""Architectures whose indexer has an ordinary cache of one head, V included.

`llama_kv_cache_msa`; those of DeepSeek V3.2 and GLM-5 hold K alone.
"""
POOLED_INDEXERS = frozenset({"glm5-next"})
"""Architectures whose indexer keeps key, gate and pooled key side by side in one K row (`llama_memory_hybrid_idx`)."""
COMPRESSED = frozenset({"deepseek4"})
"""Architectures that keep a window of plain rows, and one row for several tokens of all that lies before it.

`llama_kv_cache_dsv4`: K alone, and every sequence has caches of its own even where the cache is unified.
"""
SPARSE_RATIO, HEAVY_RATIO = 4, 128
"""Tokens per row of their two kinds of compressed caches (`DSV4_CSA_RATIO`, `DSV4_HCA_RATIO`)."""
COMPRESSED_WINDOW = 128
"""`sliding_window` of DeepSeek V4 Flash and Pro, where a model does not name its own."""
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


class Span(NamedTuple):
    """What the cells of one cache stand for."""

    window: int | None = None
    """The last tokens alone; None is the whole context."""
    ratio: int = 1
    """Tokens per cell."""


Row = tuple[Span, str, int]
"""Span, type and elements of a row of K or V, or of an indexer's key."""


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
    if not rest or not is_quantized(kv_type):
        return 0
    # As the difference of two rows, so that a row that is not whole blocks is refused by its own size.
    return kv_row_bytes(kv_type, ROW_PADDING) - kv_row_bytes(kv_type, rest)


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


def window_cells(window: int, settings: Settings, full_cells: int, *, apart: bool = False) -> int:
    """Cells of one stream of a sliding-window cache: the windows of all its sequences and one micro-batch.

    `apart` where every sequence has a stream of its own even in a unified cache.
    """
    if settings.swa_full:
        return full_cells
    sequences = settings.parallel if settings.kv_unified and not apart else 1
    return pad(min(full_cells, window * sequences + settings.ubatch), CELL_PADDING)


def largest_value_row(spec: ModelSpec) -> int:
    """Elements of the widest V row: without flash attention every layer's transposed V has it."""
    return max(
        (m.kv_heads * m.value_dim for layer in spec.layers for m in layer.mixers if isinstance(m, Attention)),
        default=0,
    )


def model_window(spec: ModelSpec) -> int | None:
    """Give the window of a model's windowed caches, None where it has none."""
    if spec.architecture in COMPRESSED:
        return dict(spec.sizes).get("window", COMPRESSED_WINDOW)
    return next((window for layer in spec.layers if (window := layer_window(spec, layer))), None)


def model_cells(spec: ModelSpec, settings: Settings, context_tokens: int | None = None) -> tuple[int, int]:
    """Cells of one stream of a model's full cache, and its streams."""
    cells, streams = stream_cells(settings, context_tokens)
    return cells, settings.parallel if spec.architecture in COMPRESSED else streams


def span_cells(spec: ModelSpec, span: Span, settings: Settings, full_cells: int) -> int:
    """Cells of one stream of a cache, where a full one has `full_cells`."""
    if span.window is not None:
        return window_cells(span.window, settings, full_cells, apart=spec.architecture in COMPRESSED)
    return full_cells if span.ratio == 1 else pad(-(-full_cells // span.ratio), CELL_PADDING)


def mixer_caches(spec: ModelSpec, mixer: Mixer, settings: Settings) -> tuple[Row, ...]:
    """Span, type and elements of every row that this mixer's caches are made of: K, V, an indexer's key."""
    if spec.architecture in CACHELESS:
        return ()
    if spec.architecture in COMPRESSED:
        return _compressed_caches(spec, mixer, settings)
    if isinstance(mixer, Mla):
        # One compressed K row serves as V; the sparse indexer keeps a K row of its own.
        rows = [(settings.kv_type_k, mixer.kv_rank + mixer.rope_dim)]
    elif isinstance(mixer, Attention) and not mixer.shares_kv:
        values = mixer.kv_heads * mixer.value_dim if settings.flash_attention else largest_value_row(spec)
        rows = [(settings.kv_type_k, mixer.kv_heads * mixer.key_dim), (settings.kv_type_v, values)]
    elif isinstance(mixer, NoMixer) and spec.architecture in BLOCKS_WITHOUT_ATTENTION and not settings.flash_attention:
        rows = [(settings.kv_type_v, largest_value_row(spec))]
    else:
        return ()
    if isinstance(mixer, Attention | Mla) and mixer.indexer_dim:
        parts = 3 if spec.architecture in POOLED_INDEXERS else 1
        rows.append((settings.kv_type_k, parts * mixer.indexer_dim))
        if spec.architecture in INDEXED_VALUES:
            rows.append((settings.kv_type_v, mixer.value_dim))
    span = Span(effective_window(spec, mixer) if isinstance(mixer, Attention) else None)
    return tuple((span, *row) for row in rows)


def _compressed_caches(spec: ModelSpec, mixer: Mixer, settings: Settings) -> tuple[Row, ...]:
    if not isinstance(mixer, Attention):
        return ()
    row = mixer.key_dim
    plain = (Span(model_window(spec)), settings.kv_type_k, row)
    if mixer.indexer_dim:
        sparse = Span(ratio=SPARSE_RATIO)
        return plain, (sparse, settings.kv_type_k, row), (sparse, settings.kv_type_k, mixer.indexer_dim)
    return (plain,) if mixer.window is not None else (plain, (Span(ratio=HEAVY_RATIO), settings.kv_type_k, row))


def mixer_row_bytes(spec: ModelSpec, mixer: Mixer, settings: Settings) -> float:
    """Bytes that one token of the context takes in this mixer's caches, once it is as long as any window."""
    caches = mixer_caches(spec, mixer, settings)
    compressed = [one for one in caches if one[0].ratio > 1]
    return sum(kv_row_bytes(kv_type, elements) / span.ratio for span, kv_type, elements in compressed or caches)


def layer_window(spec: ModelSpec, layer: Layer) -> int | None:
    """Give the sliding window of a layer's attention, None where it sees the whole context."""
    for mixer in layer.mixers:
        if isinstance(mixer, Attention):
            return effective_window(spec, mixer)
    return None


def layer_caches(spec: ModelSpec, layer: Layer, settings: Settings) -> tuple[Row, ...]:
    """Span, type and elements of every row of a layer's caches."""
    return tuple(one for mixer in layer.mixers for one in mixer_caches(spec, mixer, settings))


def layer_row_bytes(spec: ModelSpec, layer: Layer, settings: Settings) -> dict[Span, int]:
    """Bytes of one cell of each of a layer's caches."""
    return row_bytes(layer_caches(spec, layer, settings))


def row_bytes(rows: tuple[Row, ...]) -> dict[Span, int]:
    """Bytes of one cell of each kind of cache."""
    found: dict[Span, int] = {}
    for span, kv_type, elements in rows:
        found[span] = found.get(span, 0) + kv_row_bytes(kv_type, elements)
    return found


def next_token_caches(spec: ModelSpec, settings: Settings) -> tuple[Row, ...]:
    """Rows that the caches hold for next-token blocks, whether these are loaded or not; they count with the last block.

    Compressed caches have windows for them; hybrids all that a block with attention has.
    """
    if not spec.mtp_layers or spec.architecture not in NEXT_TOKEN_CACHED | COMPRESSED:
        return ()
    every = (layer_caches(spec, layer, settings) for layer in spec.layers)
    first = next((rows for rows in every if rows), ())
    if spec.architecture in COMPRESSED:
        first = tuple(row for row in first if row[0].window is not None)
    return first * spec.mtp_layers


def layer_kv_bytes(spec: ModelSpec, layer: Layer, settings: Settings, context_tokens: int | None = None) -> int:
    """KV cache bytes of one layer over all streams."""
    return _bytes_of(spec, layer_caches(spec, layer, settings), settings, context_tokens)


def _bytes_of(spec: ModelSpec, rows: tuple[Row, ...], settings: Settings, context_tokens: int | None) -> int:
    cells, streams = model_cells(spec, settings, context_tokens)
    sums = row_bytes(rows).items()
    return sum(size * span_cells(spec, span, settings, cells) * streams for span, size in sums)


def kv_bytes(spec: ModelSpec, settings: Settings, context_tokens: int | None = None) -> int:
    """KV cache bytes of the whole model."""
    beyond = _bytes_of(spec, next_token_caches(spec, settings), settings, context_tokens)
    return beyond + sum(layer_kv_bytes(spec, layer, settings, context_tokens) for layer in spec.layers)


def rows_padding_bytes(spec: ModelSpec, rows: tuple[Row, ...], settings: Settings, context_tokens: int) -> int:
    """Give what the tensors of these caches take on a CUDA or ROCm device beyond their elements."""
    cells, streams = model_cells(spec, settings, context_tokens)
    total = 0
    for span, kv_type, elements in rows:
        size = kv_row_bytes(kv_type, elements) * span_cells(spec, span, settings, cells) * streams
        total += pad(size + padding_bytes(kv_type, elements), TENSOR_ALIGNMENT) - size
    return total


def compressor_elements(spec: ModelSpec, mixer: Attention) -> int:
    """F32 elements that the compressors of one sequence keep of tokens that do not fill a row yet.

    Values and scores, for two overlapping groups where the ratio is the small one (`llama_dsv4_comp_state`).
    """
    if spec.architecture not in COMPRESSED or mixer.window is not None:
        return 0
    if mixer.indexer_dim:
        return 2 * (2 * SPARSE_RATIO) * 2 * (mixer.key_dim + mixer.indexer_dim)
    return 2 * HEAVY_RATIO * mixer.key_dim


def layer_state_bytes(spec: ModelSpec, layer: Layer, settings: Settings, rollbacks: int = 0) -> int:
    """F32 bytes of a layer's convolution, recurrent and compressor states, one set per slot.

    `rollbacks` is the number of snapshots that speculative decoding keeps per slot (`n_rs_seq`).
    """
    elements = sum(m.conv_elements + m.state_elements for m in layer.mixers if isinstance(m, Recurrent))
    elements += sum(compressor_elements(spec, m) for m in layer.mixers if isinstance(m, Attention))
    return 4 * elements * max(1, settings.parallel) * (1 + rollbacks)


def state_bytes(spec: ModelSpec, settings: Settings, rollbacks: int = 0) -> int:
    """Recurrent state bytes of the whole model; independent of the context and of the KV type."""
    counts = Counter(map(id, spec.layers))
    distinct = {id(layer): layer for layer in spec.layers}
    return sum([count * layer_state_bytes(spec, distinct[key], settings, rollbacks) for key, count in counts.items()])


def output_bytes(spec: ModelSpec, settings: Settings) -> int:
    """Bytes of the logits buffer in host memory: one F32 row of the vocabulary per slot at start."""
    return 4 * spec.vocab_size * max(1, settings.parallel)
