"""From what a user types to a model: a path, a store's name, a hub's address, or a name of the catalog."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from willitrun_catalog.errors import FileAccessError
from willitrun_catalog.model import ModelSpec
from willitrun_catalog.readers.places import Places, find_places
from willitrun_catalog.readers.source import kind_of


def open_anything(text: str, places: Places | None = None) -> ModelSpec:
    """Get the model that `text` names; raises `CatalogError`."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "ollama":
        from willitrun_catalog.readers.ollama import open_ollama  # noqa: PLC0415 - one reader per scheme

        return open_ollama(rest, (places or find_places()).ollama)
    if colon and scheme == "hf":
        from willitrun_catalog.readers.hub import open_hub  # noqa: PLC0415 - one reader per scheme

        return open_hub(rest)
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises where there is no home
    if looks_like_path(text) or _exists(path):
        return model_from_path(path)
    return _named(text, places)


def looks_like_path(text: str) -> bool:
    """Whether a text can only be meant as a path."""
    return text.lower().endswith(".gguf") or text.startswith(("/", "./", "../", "~"))


def _exists(path: Path) -> bool:
    """Whether something is there: a folder named like a model only counts when it holds one."""
    try:
        return path.is_file() or (path / "config.json").exists()
    except (OSError, ValueError):
        return False


def model_from_path(path: Path) -> ModelSpec:
    """Read a `.gguf` file or a folder with safetensors; raises `CatalogError`."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        link = path.is_symlink()
        reason = f"is a link that leads nowhere: {error.strerror}" if link else f"cannot be read: {error.strerror}"
        raise FileAccessError(str(path), reason, "check the path") from error
    except ValueError as error:
        raise FileAccessError(repr(str(path)), f"is not a path: {error}") from error
    if stat.S_ISDIR(mode):
        return _model_from_folder(path)
    if not stat.S_ISREG(mode):
        raise FileAccessError(str(path), f"is a {kind_of(mode)}, not a file")
    if path.suffix.lower() == ".safetensors":
        return _model_from_folder(path.parent)
    from willitrun_catalog.readers.gguf_model import model_from_file  # noqa: PLC0415 - one reader per kind

    return model_from_file(path)


def _model_from_folder(path: Path) -> ModelSpec:
    if path.name.lower().endswith(".gguf"):
        raise FileAccessError(str(path), "is a folder, not a file")
    try:
        files = sorted(entry for entry in path.iterdir() if entry.name.lower().endswith(".gguf"))
    except OSError as error:
        raise FileAccessError(str(path), f"cannot be listed: {error.strerror}") from error
    if (path / "config.json").exists():
        from willitrun_catalog.readers.checkpoint import model_from_folder  # noqa: PLC0415 - one reader per kind

        return model_from_folder(path)
    return _only_gguf(path, files)


def _only_gguf(path: Path, files: list[Path]) -> ModelSpec:
    """Read the one model of a folder of `.gguf` files; raises `FileAccessError` when there are several or none."""
    from willitrun_catalog.readers.gguf_model import model_from_file, part_paths  # noqa: PLC0415 - one reader per kind

    models = {part_paths(file)[0] for file in files if "mmproj" not in file.name.lower()}
    if len(models) == 1:
        return model_from_file(models.pop())
    if models:
        names = ", ".join(sorted(model.name for model in models)[:4])
        raise FileAccessError(str(path), f"holds {len(models)} models", f"name one of them: {names}")
    raise FileAccessError(
        str(path), "holds no model: neither config.json with safetensors nor a .gguf file", "name a model's folder"
    )


def _named(text: str, places: Places | None) -> ModelSpec:
    from willitrun_catalog.find import find_model  # noqa: PLC0415 - only names need the catalogs
    from willitrun_catalog.readers.user import find_entry  # noqa: PLC0415

    folder = (places or find_places()).user_catalog
    own = find_entry(folder, text) if folder is not None else None
    return own if own is not None else find_model(text, others=False).spec
