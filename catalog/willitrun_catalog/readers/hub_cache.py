"""Models that huggingface_hub has downloaded, read without a network."""

from __future__ import annotations

from pathlib import Path

from willitrun_catalog.errors import HubError
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.hub import Address, Repository, choose, repository_of, snapshot_path
from willitrun_catalog.readers.places import find_places


def open_cached(address: Address, caches: tuple[Path, ...] | None = None) -> ModelSpec:
    """Read a model from the local hub cache; raises `CatalogError`."""
    from willitrun_catalog.readers.open import model_from_path  # noqa: PLC0415 - which itself opens hub addresses

    for cache in find_places().huggingface if caches is None else caches:
        snapshot = snapshot_path(cache, address.repository)
        if snapshot is None:
            continue
        files = {str(path.relative_to(snapshot)): _size(path) for path in sorted(snapshot.rglob("*")) if path.is_file()}
        repository: Repository = repository_of(address.repository, "cached", files)
        if repository.models and address.selector != "safetensors":
            return model_from_path(snapshot / choose(repository, address.selector).files[0])
        return model_from_path(snapshot)
    raise HubError(
        f"hf:{address.repository}",
        "is not in the local cache, and offline mode is on (HF_HUB_OFFLINE)",
        advice="unset it, or download the repository first",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
