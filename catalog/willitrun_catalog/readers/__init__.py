"""Models that are files: on disk, in a local store, on a hub or in the user's own catalog."""

from __future__ import annotations

from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.places import Places


def open_model(text: str, *, places: Places | None = None) -> ModelSpec:
    """Get the model that MODEL names, wherever it is.

    `hf:ORG/REPO[:FILE|QUANT]` asks a hub, `ollama:NAME` the local store; a path to a `.gguf` file or to a folder is
    read; everything else is a name of the user's catalog or of the shipped one. Raises `CatalogError`.
    """
    from willitrun_catalog.readers.open import open_anything  # noqa: PLC0415 - readers load what they need

    return open_anything(text, places)


__all__ = ["Places", "open_model"]
