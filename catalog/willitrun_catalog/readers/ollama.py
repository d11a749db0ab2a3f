"""Models that ollama has pulled: manifests name content-addressed blobs.

Layout: `manifests/HOST/NAMESPACE/NAME/TAG` is an OCI manifest, `blobs/sha256-…` are its layers
(server/modelpath.go and server/manifest.go of https://github.com/ollama/ollama).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from willitrun_catalog.errors import CatalogError, FileAccessError, FileFormatError, UnknownModel
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.gguf_model import model_from_file
from willitrun_catalog.readers.source import read_small

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MODEL_LAYER = "application/vnd.ollama.image.model"
PROJECTOR_LAYER = "application/vnd.ollama.image.projector"
MAX_MANIFEST_BYTES = 1 << 20
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$")
_DIGEST = re.compile(r"^sha256[:-]([0-9a-f]{64})$")


class ManifestLayer(Struct, rename="camel"):
    """One layer of a manifest."""

    media_type: str
    digest: str
    size: int = 0


class Manifest(Struct):
    """What a manifest says that matters here."""

    layers: list[ManifestLayer]


class Pulled(Struct, frozen=True):
    """A model in an ollama store."""

    name: str
    """As `ollama run` takes it: `llama3.2:1b`, `hf.co/ORG/REPO:QUANT`."""
    manifest: Path
    store: Path


def manifest_path(store: Path, name: str) -> Path:
    """Find the manifest that a name stands for; raises `UnknownModel` for what cannot be a name."""
    path, _, tag = name.rpartition(":") if ":" in name.rsplit("/", 1)[-1] else (name, "", DEFAULT_TAG)
    parts = path.split("/")
    if len(parts) > 3 or not all(_PART.match(part) for part in [*parts, tag]):  # noqa: PLR2004
        raise UnknownModel(f"ollama:{name}")
    defaults = [DEFAULT_HOST, DEFAULT_NAMESPACE]
    return store.joinpath("manifests", *defaults[: 3 - len(parts)], *parts, tag)


def pulled_models(store: Path) -> Iterator[Pulled]:
    """List the models of a store; a store that is not there holds none."""
    top = store / "manifests"
    for folder, folders, files in os.walk(top):
        folders.sort()
        for file in sorted(files):
            manifest = Path(folder) / file
            parts = manifest.relative_to(top).parts
            if len(parts) == 4 and not file.startswith("."):  # noqa: PLR2004
                yield Pulled(short_name(parts), manifest, store)


def short_name(parts: tuple[str, ...]) -> str:
    """Name a model as ollama does: without the host and namespace that are the default."""
    host, namespace, name, tag = parts
    if host != DEFAULT_HOST:
        return f"{host}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == DEFAULT_NAMESPACE else f"{namespace}/{name}:{tag}"


def blobs(manifest: Path, store: Path) -> tuple[Path, Path | None]:
    """Find the weights and the projector a manifest names; raises `CatalogError`."""
    try:
        layers = msgspec.json.decode(read_small(manifest, MAX_MANIFEST_BYTES), type=Manifest).layers
    except msgspec.MsgspecError as error:
        raise FileFormatError(str(manifest), f"is not an ollama manifest: {error}") from error
    weights = [_blob(store, layer, manifest) for layer in layers if layer.media_type == MODEL_LAYER]
    projectors = [_blob(store, layer, manifest) for layer in layers if layer.media_type == PROJECTOR_LAYER]
    if not weights:
        raise FileFormatError(
            str(manifest), "names no GGUF weights (a cloud model, or one in another format)", field="layers"
        )
    return weights[0], projectors[0] if projectors else None


def _blob(store: Path, layer: ManifestLayer, manifest: Path) -> Path:
    match = _DIGEST.match(layer.digest)
    if match is None:
        raise FileFormatError(str(manifest), f"names the blob {layer.digest!r}", field="digest")
    path = store / "blobs" / f"sha256-{match[1]}"
    if not path.exists():
        raise FileAccessError(str(path), "is named by a manifest and is not there", "pull the model again")
    return path


def open_ollama(name: str, stores: tuple[Path, ...]) -> ModelSpec:
    """Read a model that ollama has pulled; raises `CatalogError`."""
    for store in stores:
        manifest = manifest_path(store, name)
        if manifest.is_file():
            return model_from_manifest(Pulled(name, manifest, store))
    known = tuple(pulled.name for store in stores for pulled in _readable(store))
    unknown = UnknownModel(f"ollama:{name}", _nearest(name, known))
    if not known:
        unknown.advice = (
            f"nothing is pulled in {', '.join(map(str, stores))}: `ollama pull {name}`, or set OLLAMA_MODELS"
        )
    raise unknown


def _readable(store: Path) -> Iterator[Pulled]:
    try:
        yield from pulled_models(store)
    except OSError:
        return


def _nearest(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    from difflib import get_close_matches  # noqa: PLC0415 - only once a name was wrong

    return tuple(f"ollama:{match}" for match in get_close_matches(name, known, n=3, cutoff=0.3)) or known[:3]


def model_from_manifest(pulled: Pulled) -> ModelSpec:
    """Read the model behind a manifest; raises `CatalogError`."""
    weights, projector = blobs(pulled.manifest, pulled.store)
    spec = model_from_file(weights)
    try:
        projector_bytes = projector.stat().st_size if projector else 0
    except OSError as error:
        raise CatalogError(f"{projector}: {error.strerror}") from error
    return msgspec.structs.replace(
        spec,
        name=f"ollama:{pulled.name}",
        title=spec.title if spec.title != weights.name else pulled.name,
        source=f"ollama:{pulled.name}",
        projector=str(projector) if projector else None,
        projector_bytes=projector_bytes,
    )
