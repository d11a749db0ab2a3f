"""Architecture families of GPUs: which devices share the constants of the speed model.

A family is a generation of compute units with one memory technology: A100 and the consumer Ampere cards run the same
instructions, but latency weighs differently beside HBM. A GPU that nobody measured belongs to a family all the same,
by its CUDA compute capability (CUDA C++ Programming Guide, compute capabilities) or its LLVM target (LLVM AMDGPU
usage, processors).
"""

from __future__ import annotations

import re

UNKNOWN = "unknown"

_CUDA = (
    (5, "kepler"),
    (6, "maxwell"),
    (6.05, "gp100"),
    (7, "pascal"),
    (7.45, "volta"),
    (7.95, "turing"),
    (8.05, "a100"),
    (8.85, "ampere"),
    (8.95, "ada"),
    (9.95, "hopper"),
    (11.95, "blackwell-dc"),
    (13, "blackwell"),
)
"""First compute capability above a family. 8.7 (Orin) counts as Ampere, 12.1 (GB10) as Blackwell, 11.0 (Thor) with
the data-centre Blackwell it descends from."""

_GFX = (
    ("gfx90a", "cdna"),
    ("gfx908", "cdna"),
    ("gfx906", "gcn5"),
    ("gfx94", "cdna3"),
    ("gfx95", "cdna3"),
    ("gfx8", "gcn"),
    ("gfx9", "gcn"),
    ("gfx101", "rdna1"),
    ("gfx103", "rdna2"),
    ("gfx115", "rdna35"),
    ("gfx11", "rdna3"),
    ("gfx12", "rdna4"),
)

_TURING_WITHOUT_TENSOR_CORES = re.compile(r"\b(GTX 16\d0|T[45612]\d{2,3}|MX4[5-9]0)\b")
"""TU116 and TU117 share compute capability 7.5 with Turing but have no tensor cores (NVIDIA Turing architecture
whitepaper; GeForce GTX 16 series)."""

FAMILIES = ("turing16", *dict.fromkeys(found for _, found in (*_CUDA, *_GFX)), "apple", "apple5", "xe", "xe2")
"""Every family that has a name; `unknown` is none of them."""

_APPLE = re.compile(r"\bm(\d+)\b")
_APPLE_MATRIX_GENERATION = 5
"""From the M5 on, Apple's GPU cores have matrix units."""
_XE2 = re.compile(r"\b(b\d{2,3}|1[34]0v|battlemage|lunar lake|xe2)\b")


def family(
    *,
    vendor: str | None = None,
    compute_capability: str | None = None,
    gfx_target: str | None = None,
    name: str = "",
) -> str:
    """Return the family of a GPU, `unknown` when nothing given tells.

    `compute_capability` is CUDA's (`8.9`), `gfx_target` LLVM's (`gfx1100`); the name is read for vendors that have
    neither.
    """
    if compute_capability:
        generation = _by_capability(compute_capability)
        return "turing16" if generation == "turing" and _TURING_WITHOUT_TENSOR_CORES.search(name) else generation
    if gfx_target:
        target = gfx_target.lower()
        return next((found for prefix, found in _GFX if target.startswith(prefix)), UNKNOWN)
    text = name.lower()
    if vendor == "apple" or text.startswith("apple"):
        found = _APPLE.search(text)
        return "apple5" if found and int(found[1]) >= _APPLE_MATRIX_GENERATION else "apple"
    if vendor == "intel" or text.startswith("intel"):
        return "xe2" if _XE2.search(text) else "xe"
    return UNKNOWN


def _by_capability(text: str) -> str:
    try:
        capability = float(text)
    except ValueError:
        return UNKNOWN
    return next((found for above, found in _CUDA if capability < above), UNKNOWN)
