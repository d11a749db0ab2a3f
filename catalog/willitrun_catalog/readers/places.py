"""Where models lie on a machine: the folders of the known stores, from the environment and the home folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

NAME = "willitrun-here"


class Places(Struct, frozen=True, kw_only=True):
    """The folders that are looked into. Lists may name folders that do not exist."""

    ollama: tuple[Path, ...] = ()
    """Folders with `manifests` and `blobs`."""
    lm_studio: tuple[Path, ...] = ()
    huggingface: tuple[Path, ...] = ()
    """Hub cache folders, which hold `models--ORG--NAME`."""
    llama_cpp: tuple[Path, ...] = ()
    gpt4all: tuple[Path, ...] = ()
    jan: tuple[Path, ...] = ()
    user_catalog: Path | None = None
    scan_cache: Path | None = None
    """File that remembers what a scan has read."""


def find_places(environment: Mapping[str, str] | None = None, home: Path | None = None) -> Places:
    """Work out the folders from an environment and a home folder; this process's own by default.

    Sources: docs/faq.md and envconfig of https://github.com/ollama/ollama (OLLAMA_MODELS), `fs_get_cache_directory`
    in common/common.cpp of https://github.com/ggml-org/llama.cpp (LLAMA_CACHE), huggingface_hub/constants.py
    (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME), https://lmstudio.ai/docs/app/advanced/import-model,
    https://docs.gpt4all.io/gpt4all_desktop/models.html, https://jan.ai/docs/data-folder.
    """
    env = os.environ if environment is None else environment
    home = _home() if home is None else home
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    data = Path(env.get("XDG_DATA_HOME") or home / ".local" / "share")
    config = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    hub_home = Path(env.get("HF_HOME") or cache / "huggingface")
    hub = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    own_data, own_cache = data / NAME, cache / NAME
    if environment is None and sys.platform != "linux":
        from platformdirs import user_cache_path, user_data_path  # noqa: PLC0415 - on Linux it says the same as above

        own_data = user_data_path(NAME, appauthor=False)
        own_cache = user_cache_path(NAME, appauthor=False)
    own_ollama = (home / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama"))
    return Places(
        ollama=(Path(env["OLLAMA_MODELS"]),) if env.get("OLLAMA_MODELS") else own_ollama,
        lm_studio=(home / ".lmstudio" / "models", cache / "lm-studio" / "models"),
        huggingface=(Path(hub) if hub else hub_home / "hub",),
        llama_cpp=(Path(env.get("LLAMA_CACHE") or cache / "llama.cpp"),),
        gpt4all=(data / "nomic.ai" / "GPT4All", cache / "gpt4all"),
        jan=(data / "Jan" / "data" / "models", config / "Jan" / "data" / "models", home / "jan" / "models"),
        user_catalog=Path(env["WILLITRUN_MODELS"]) if env.get("WILLITRUN_MODELS") else own_data / "models",
        scan_cache=own_cache / "scan.json",
    )


def _home() -> Path:
    """Get the home folder, or the root where there is none (a container's bare user)."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")
