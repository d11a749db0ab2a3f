"""Compile the fake vendor libraries; loaded by path from the tests that need them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def compiler() -> str | None:
    """Return a C compiler, or None."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build_nvml(folder: Path) -> Path:
    """Compile the fake NVML."""
    library = folder / "libnvidia-ml.so.1"
    _compile(HERE / "nvml.c", library, "-Wl,-soname,libnvidia-ml.so.1")
    return library


def build_amdsmi(folder: Path) -> Path:
    """Compile the fake AMD SMI for the installed bindings; raises LookupError without any."""
    found = importlib.util.find_spec("amdsmi")
    if found is None or found.origin is None:
        raise LookupError("amdsmi")
    bound = re.findall(
        r"_libraries\['libamd_smi\.so'\]\.(\w+)", (Path(found.origin).parent / "amdsmi_wrapper.py").read_text()
    )
    here = set(re.findall(r"EXPORT status (\w+)\(", (HERE / "amdsmi.c").read_text()))
    rest = folder / "rest.inc"
    rest.write_text("".join(f"REST_OF({name})\n" for name in sorted(set(bound) - here)))
    library = folder / "lib" / "libamd_smi.so"
    library.parent.mkdir(exist_ok=True)
    _compile(HERE / "amdsmi.c", library, f'-DREST="{rest}"')
    return library


def _compile(source: Path, library: Path, *options: str) -> None:
    cc = compiler()
    assert cc is not None
    subprocess.run(
        [cc, "-shared", "-fPIC", "-O1", "-Wall", "-fvisibility=hidden", *options, "-o", str(library), str(source)],
        check=True,
    )
