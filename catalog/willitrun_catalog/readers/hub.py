"""Models on a hub: `hf:ORG/REPO[:FILE|QUANT]`, judged from headers read by range requests, without a weight.

Routes: `/api/models/ORG/REPO?blobs=true` for the list of files and `/ORG/REPO/resolve/REVISION/FILE` for their bytes
(https://huggingface.co/docs/hub/api and huggingface_hub). Quantization names in file names follow the habit that
`llama-server -hf` relies on (common/arg.cpp of https://github.com/ggml-org/llama.cpp): Q4_K_M where nothing is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote as url_quote

import msgspec
from msgspec import Struct

from willitrun_catalog.errors import CatalogError, FileFormatError, HubError
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.checkpoint import (
    MAX_CONFIG_BYTES,
    Checkpoint,
    decode_json,
    model_from_checkpoint,
)
from willitrun_catalog.readers.gguf import read_header
from willitrun_catalog.readers.gguf_model import model_from_headers
from willitrun_catalog.readers.hub_http import FIRST_STEP_BYTES, Connection, HubFile, connect, fetch
from willitrun_catalog.readers.names import PART, quant_of
from willitrun_catalog.readers.safetensors import read_tensors

PREFERRED_QUANT = "Q4_K_M"
MAX_LIST_BYTES = 32 << 20
MAX_FILES = 50_000
PARALLEL_REQUESTS = 8
_REPO = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}$")


class HubModel(Struct, frozen=True, kw_only=True):
    """One model of a repository: a quantization of it, in one file or several."""

    quant: str | None
    files: tuple[str, ...]
    size_bytes: int


class Repository(Struct, frozen=True, kw_only=True):
    """What a repository lists."""

    name: str
    revision: str
    sizes: dict[str, int]
    license: str | None = None
    models: tuple[HubModel, ...] = ()
    """The GGUF models in it, smallest first."""
    projectors: tuple[HubModel, ...] = ()


class _Sibling(Struct):
    rfilename: str
    size: int | None = None


class _CardData(Struct):
    license: str | list[str] | None = None


class _Info(Struct, rename="camel"):
    siblings: list[_Sibling] = []
    sha: str = "main"
    card_data: _CardData | None = None


class Address(Struct, frozen=True):
    """A parsed `hf:` address."""

    repository: str
    selector: str | None


def parse_address(text: str) -> Address:
    """Take `ORG/REPO[:FILE|QUANT]` apart; raises `CatalogError`."""
    repository, _, selector = text.removeprefix("hf:").partition(":")
    if not _REPO.match(repository) or ".." in repository:
        raise CatalogError(
            f"hf:{text}: {repository!r} is not ORG/REPO", "write hf:ORG/REPO, hf:ORG/REPO:Q4_K_M or :FILE"
        )
    return Address(repository, selector or None)


def list_repository(connection: Connection, name: str) -> Repository:
    """Ask the hub for a repository's files and sizes; raises `HubError`."""
    source = f"hf:{name}"
    path = f"/api/models/{url_quote(name)}?blobs=true"
    piece = fetch(connection, path, source, length=MAX_LIST_BYTES, ranged=False)
    try:
        info = msgspec.json.decode(piece.data, type=_Info)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise HubError(source, f"sent a list of files that is not one: {error}") from error
    sizes = {sibling.rfilename: max(0, sibling.size or 0) for sibling in info.siblings[:MAX_FILES]}
    named = info.card_data.license if info.card_data else None
    licence = named[0] if isinstance(named, list) and named else named if isinstance(named, str) else None
    return repository_of(name, info.sha, sizes, license=licence)


def repository_of(name: str, revision: str, sizes: dict[str, int], *, license: str | None = None) -> Repository:  # noqa: A002
    """Sort a list of files into models and projectors."""
    models, projectors = _gguf_models(sizes)
    return Repository(name=name, revision=revision, sizes=sizes, license=license, models=models, projectors=projectors)


def _gguf_models(sizes: Mapping[str, int]) -> tuple[tuple[HubModel, ...], tuple[HubModel, ...]]:
    groups: dict[str, list[str]] = {}
    for name in sizes:
        if name.lower().endswith(".gguf"):
            part = PART.match(name)
            groups.setdefault(part["stem"] if part else name.removesuffix(".gguf"), []).append(name)
    found = [
        HubModel(quant=quant_of(stem), files=tuple(sorted(files)), size_bytes=sum(sizes[file] for file in files))
        for stem, files in groups.items()
    ]
    found.sort(key=lambda model: (model.size_bytes, model.files))
    models = tuple(model for model in found if not _is_projector(model.files[0]))
    return models, tuple(model for model in found if _is_projector(model.files[0]))


def _is_projector(name: str) -> bool:
    base = PurePosixPath(name).name.lower()
    return "mmproj" in base or base.startswith("imatrix")


def choose(repository: Repository, selector: str | None) -> HubModel:
    """Pick the model a selector names; raises `HubError` listing what there is."""
    models = repository.models
    if selector is None:
        preferred = [model for model in models if model.quant == PREFERRED_QUANT]
        return (preferred or list(models))[0]
    wanted = selector.lower()
    tests: tuple[Callable[[HubModel], bool], ...] = (
        lambda model: selector in model.files or wanted in {file.lower() for file in model.files},
        lambda model: (model.quant or "").lower() == wanted,
        lambda model: (model.quant or "").lower().removeprefix("ud-") == wanted,
        lambda model: wanted in {PurePosixPath(file).name.lower() for file in model.files},
    )
    for test in tests:
        found = [model for model in models if test(model)]
        if found:
            return found[0]
    offered = ", ".join(model.quant or model.files[0] for model in models[:12]) or "no GGUF file at all"
    raise HubError(f"hf:{repository.name}:{selector}", "is not in the repository", advice=f"it has {offered}")


def open_hub(text: str, connection: Connection | None = None) -> ModelSpec:
    """Read a model of a hub; raises `CatalogError`. Without a network, from the local hub cache."""
    address = parse_address(text)
    connection = connection or connect()
    if connection.offline:
        from willitrun_catalog.readers.hub_cache import open_cached  # noqa: PLC0415 - only without a network

        return open_cached(address)
    repository = list_repository(connection, address.repository)
    if repository.models and address.selector != "safetensors":
        return read_gguf(connection, repository, choose(repository, address.selector))
    if address.selector not in {None, "safetensors"}:
        choose(repository, address.selector)
    return read_checkpoint(connection, repository)


def read_gguf(connection: Connection, repository: Repository, model: HubModel) -> ModelSpec:
    """Read one GGUF model of a repository from its headers; raises `CatalogError`."""
    count = PART.match(model.files[0])
    if count is not None and int(count["count"]) != len(model.files):
        raise HubError(
            f"hf:{repository.name}", f"{model.files[0]}: {len(model.files)} of {int(count['count'])} parts are there"
        )
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only where something is fetched

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        headers = list(pool.map(lambda file: read_header(_file(connection, repository, file)), model.files))
    spec = model_from_headers(
        headers, source=f"hf:{repository.name}:{model.files[0]}", file_name=PurePosixPath(model.files[0]).name
    )
    projector = repository.projectors[0] if repository.projectors else None
    return msgspec.structs.replace(
        spec,
        files=(),
        hf_id=spec.hf_id or repository.name,
        license=spec.license or repository.license,
        gguf_repos=(repository.name,),
        projector=f"hf:{repository.name}:{projector.files[0]}" if projector else None,
        projector_bytes=projector.size_bytes if projector else 0,
    )


def read_checkpoint(connection: Connection, repository: Repository) -> ModelSpec:
    """Read a safetensors model of a repository from its headers; raises `CatalogError`."""
    source = f"hf:{repository.name}"
    shards = sorted(name for name in repository.sizes if name.endswith(".safetensors") and "/" not in name)
    if "model.safetensors.index.json" in repository.sizes:
        shards = [name for name in shards if re.search(r"-\d{5}-of-\d{5}\.safetensors$", name)] or shards
    if "config.json" not in repository.sizes or not shards:
        raise HubError(source, "holds neither GGUF files nor config.json with safetensors")
    config = _json(connection, repository, "config.json")
    extra = "hf_quant_config.json"
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only where something is fetched

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        tables = list(pool.map(lambda name: read_tensors(_file(connection, repository, name, first=1 << 17)), shards))
    checkpoint = Checkpoint(
        config=config,
        quant_config=_json(connection, repository, extra) if extra in repository.sizes else None,
        tensors=[tensor for table in tables for tensor in table],
        file_bytes=sum(repository.sizes[name] for name in shards),
        files=(),
    )
    name = repository.name.rsplit("/", 1)[-1]
    spec = model_from_checkpoint(checkpoint, name=name, path=source, source=source)
    return msgspec.structs.replace(spec, hf_id=repository.name, license=repository.license)


def _file(connection: Connection, repository: Repository, name: str, first: int = FIRST_STEP_BYTES) -> HubFile:
    path = f"/{url_quote(repository.name)}/resolve/{url_quote(repository.revision, safe='')}/{url_quote(name)}"
    return HubFile(connection, path, f"hf:{repository.name}:{name}", repository.sizes[name], first_bytes=first)


def _json(connection: Connection, repository: Repository, name: str) -> dict[str, Any]:
    size = repository.sizes[name]
    where = f"hf:{repository.name}:{name}"
    if size > MAX_CONFIG_BYTES:
        raise FileFormatError(where, f"has {size} bytes, more than {MAX_CONFIG_BYTES} for a configuration")
    return decode_json(_file(connection, repository, name).read_at(0, size), where)


def snapshot_path(cache: Path, repository: str) -> Path | None:
    """Find the newest downloaded snapshot of a repository in a hub cache."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text("utf-8").strip()
        named = folder / "snapshots" / revision
        if revision and "/" not in revision and named.is_dir():
            return named
        snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    except (OSError, UnicodeDecodeError):
        return None
    return snapshots[-1] if snapshots else None
