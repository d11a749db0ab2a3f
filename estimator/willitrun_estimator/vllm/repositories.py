"""Ready-made checkpoints: the repositories in which a model's maker published it in another format.

`checkpoints.json` names its source. A model that is not listed has none that is known here; none is ever guessed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct

from willitrun_catalog.model import ModelSpec
from willitrun_estimator.vllm.formats import Format


class Repositories(Struct, frozen=True, forbid_unknown_fields=True):
    """The shipped file."""

    source: str
    repositories: dict[str, dict[str, str]]
    """By the model's own repository and the name of the format."""


@lru_cache(maxsize=1)
def shipped_repositories() -> Repositories:
    """Read the shipped list."""
    return msgspec.json.decode((Path(__file__).parent / "checkpoints.json").read_bytes(), type=Repositories)


def ready_made(spec: ModelSpec, checkpoint: Format) -> str | None:
    """Name the maker's repository of a format; None without one, and for a model that lies in a file or folder."""
    if spec.source != "catalog" and not spec.source.startswith("hf:"):
        return None
    own = spec.hf_id if spec.source == "catalog" else spec.source.removeprefix("hf:").partition(":")[0]
    return shipped_repositories().repositories.get(own or "", {}).get(checkpoint.name)
