"""What there is to show of one model, as plain values."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from willitrun_catalog.model import (
    Attention,
    Dense,
    Layer,
    Mla,
    ModelSpec,
    Moe,
    NoFfn,
    NoMixer,
    Recurrent,
)
from willitrun_catalog.readers.hub import HubModel, list_repository, parse_address
from willitrun_catalog.readers.hub_http import connect
from willitrun_catalog.readers.open import open_anything
from willitrun_catalog.readers.places import Places


def describe(text: str, places: Places | None = None) -> dict[str, Any]:
    """Read the facts of the model that `text` names; raises `CatalogError`."""
    return facts(open_anything(text, places))


def facts(spec: ModelSpec) -> dict[str, Any]:
    """Give the facts of a model in the order they are shown."""
    return {
        "name": spec.name,
        "title": spec.title,
        "source": spec.source,
        "architecture": spec.architecture,
        "hf_architecture": spec.hf_architecture,
        "params": spec.params,
        "quant": spec.quant,
        "file_bytes": spec.file_bytes,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "max_context_tokens": spec.max_context_tokens,
        "tied_embeddings": spec.tied_embeddings,
        "layers": layer_words(spec.layers),
        "mtp_layers": spec.mtp_layers,
        "projector": spec.projector,
        "projector_bytes": spec.projector_bytes or None,
        "capabilities": spec.capabilities,
        "license": spec.license,
        "release_date": spec.release_date,
        "hf_id": spec.hf_id,
        "gguf_repos": spec.gguf_repos,
        "files": spec.files,
        "sources": spec.sources,
        "findings": spec.findings,
    }


def quantizations(text: str) -> tuple[HubModel, ...]:
    """List every GGUF model of a hub repository with its exact size; empty for anything else."""
    if not text.startswith("hf:"):
        return ()
    connection = connect()
    if connection.offline:
        return ()
    return list_repository(connection, parse_address(text).repository).models


def layer_words(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """Say what the blocks are, one line for each run of equal ones."""
    found = []
    start = 0
    for words, run in groupby(_words(layer) for layer in layers):
        count = sum(1 for _ in run)
        numbers = f"{start}" if count == 1 else f"{start}-{start + count - 1}"
        found.append(f"{numbers}: {words}")
        start += count
    return tuple(found)


def _words(layer: Layer) -> str:
    return " + ".join([*(_mixer(mixer) for mixer in layer.mixers), _ffn(layer)])


def _mixer(mixer: Attention | Mla | Recurrent | NoMixer) -> str:
    match mixer:
        case Attention(window=window):
            reach = "whole context" if window is None else f"{'chunks' if mixer.chunked else 'window'} of {window}"
            shared = ", no cache of its own" if mixer.shares_kv else ""
            return f"attention {mixer.heads}/{mixer.kv_heads} heads of {mixer.key_dim}, {reach}{shared}"
        case Mla():
            return f"latent attention {mixer.heads} heads, cache of {mixer.kv_rank}+{mixer.rope_dim}"
        case Recurrent():
            return f"{mixer.kind}, state of {mixer.conv_elements + mixer.state_elements} values"
        case NoMixer():
            return "no attention"


def _ffn(layer: Layer) -> str:
    match layer.ffn:
        case Moe() as moe:
            shared = f", shared {moe.shared_width}" if moe.shared_width else ""
            return f"{moe.experts_used} of {moe.experts} experts of {moe.width}{shared}"
        case Dense(width=width):
            return f"feed-forward {width}"
        case NoFfn():
            return "no feed-forward"
