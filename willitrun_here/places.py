"""The user's folders for what can be found out again and for what is kept, and programs on PATH."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAME = "willitrun-here"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what can be found out again."""
    if sys.platform != "linux":
        from platformdirs import user_cache_path  # noqa: PLC0415 - on Linux it says the same as below

        return user_cache_path(NAME, appauthor=False)
    from pathlib import Path  # noqa: PLC0415 - takes longer to import than most of what asks for a path

    return Path(based("XDG_CACHE_HOME", ".cache", environment))


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what is kept: measurements, an agent's identity."""
    from pathlib import Path  # noqa: PLC0415 - as above

    return Path(state_path(environment))


def state_path(environment: Mapping[str, str] = os.environ) -> str:
    """Return the same folder as text."""
    if sys.platform != "linux":
        from platformdirs import user_state_dir  # noqa: PLC0415 - on Linux it says the same as below

        return user_state_dir(NAME, appauthor=False)
    return based("XDG_STATE_HOME", ".local/state", environment)


def based(variable: str, usual: str, environment: Mapping[str, str]) -> str:
    """Return this program's folder by the XDG Base Directory Specification 0.8, which disregards relative paths.

    A user without a home (a bare container) has the root folder: nothing can be kept there, and nothing breaks.
    """
    given = environment.get(variable, "").strip()
    if given.startswith("/"):
        return os.path.join(given, NAME)  # noqa: PTH118
    home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - pathlib's raises where there is none
    return os.path.join(home if home.startswith("/") else "/", usual, NAME)  # noqa: PTH118


def program(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the path of a program as `shutil.which` does, which takes longer to import than this takes to run."""
    folders = [""] if os.sep in name else environment.get("PATH", os.defpath).split(os.pathsep)
    for folder in folders:
        path = os.path.join(folder, name)  # noqa: PTH118 - a PATH has hundreds of candidates
        if os.access(path, os.X_OK) and os.path.isfile(path):  # noqa: PTH113
            return path
    return None
