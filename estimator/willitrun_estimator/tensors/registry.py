"""Finding an architecture's entry: every module of `families` is read once, on first use."""

from __future__ import annotations

from functools import lru_cache

from willitrun_estimator.errors import EstimatorError
from willitrun_estimator.tensors.family import Family


class UnknownArchitecture(EstimatorError):  # noqa: N818
    """No entry for this architecture, and the model brings no tensor list of its own."""

    exit_code = 4

    def __init__(self, architecture: str) -> None:
        super().__init__(
            f"the tensor list of architecture {architecture!r} is not known",
            advice="name a GGUF file or a folder with safetensors of the model: then its own tensors are counted",
        )
        self.architecture = architecture


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """All entries, by GGUF architecture."""
    from importlib import import_module  # noqa: PLC0415
    from os import listdir  # noqa: PLC0415 - pkgutil does the same and imports inspect for it

    from willitrun_estimator.tensors import families as package  # noqa: PLC0415

    found: dict[str, Family] = {}
    files = [name for folder in package.__path__ for name in listdir(folder)]  # noqa: PTH208 - nor is pathlib worth it
    names = {name.removesuffix(".py") for name in files if name.endswith(".py")}
    for name in sorted(names - {"__init__"}):
        found.update(import_module(f"{package.__name__}.{name}").FAMILIES)
    return found


def family_of(architecture: str) -> Family:
    """Find the entry of an architecture; raises `UnknownArchitecture`."""
    found = families().get(architecture)
    if found is None:
        raise UnknownArchitecture(architecture)
    return found
