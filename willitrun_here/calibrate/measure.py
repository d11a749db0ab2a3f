"""Measuring memory, disks and the processor's kernels of this machine.

Memory bandwidth is read with `memchr` of the C library on every core: it only reads, runs at the speed of compiled
code, and ctypes gives up the interpreter's lock while it does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from willitrun_here.calibrate.busy import MOST_BUSY, Processor, others_share, processor
from willitrun_here.calibrate.store import store_folder

if TYPE_CHECKING:
    from willitrun_estimator.calibration import Corrections
    from willitrun_here.calibrate.kernels import Kernels
    from willitrun_probe.machine import Machine

MIB = 1024**2
BLOCK_BYTES = 64 * MIB
"""Larger than any cache share of a core, small enough that touching it first takes no time."""
WINDOW_S = 1.5
DISK_BYTES = 1024 * MIB
DISK_S = 6.0


def measure(
    machine: Machine,
    *,
    say: Callable[[str], object],
    now: str,
    before: Corrections | None = None,
    program: str | None = None,
    folder: Path | None = None,
) -> Corrections:
    """Measure memory, disks and the kernels of `program` (llama-bench) on this machine, telling the progress.

    Earlier engine runs are kept. Models are made up under `folder`.
    """
    from willitrun_estimator.calibration import Corrections  # noqa: PLC0415 - only here
    from willitrun_here.calibrate.kernels import Kernels  # noqa: PLC0415

    threads = machine.cpu.usable_threads or 1
    known = before or Corrections()
    say(f"memory bandwidth, {threads} threads …")
    since = processor()
    rate = memory_bandwidth(threads)
    say(f"  {rate / 1e9:.1f} GB/s" if rate else "  not measurable here")
    busy = told_busy(since, say)
    disks = {}
    for disk in machine.disks:
        if disk.purpose == "home":
            continue  # no model store: a walk could take minutes
        say(f"disk under {disk.path} …")
        speed = disk_read(Path(disk.path))
        say(f"  {speed / 1e9:.2f} GB/s" if speed else "  no model file to read")
        if speed:
            disks[disk.path] = speed
    kernels = Kernels(product_rates=known.product_rates, block_s=known.block_s, side_s=known.side_s)
    if busy:
        rate = known.ram_bandwidth_bytes_per_s
    else:
        since = processor()
        found = measured_products(machine, program, threads, say=say, folder=folder)
        if not told_busy(since, say):
            kernels = found
    return Corrections(
        shape_hash=machine.shape_hash,
        measured_at=now,
        ram_bandwidth_bytes_per_s=rate,
        disk_read_bytes_per_s=disks,
        product_rates=kernels.product_rates,
        block_s=kernels.block_s,
        side_s=kernels.side_s,
        runs=known.runs,
    )


def memory_bandwidth(threads: int, *, window_s: float = WINDOW_S, block_bytes: int = BLOCK_BYTES) -> float | None:
    """Return bytes per second that so many threads read together; None without a C library.

    The best of a few windows counts: whatever else the machine does only takes away.
    """
    import ctypes  # noqa: PLC0415 - only here
    import mmap  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    try:
        memchr = ctypes.CDLL(None).memchr
    except (OSError, AttributeError):
        return None
    memchr.restype = ctypes.c_void_p
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    blocks = [mmap.mmap(-1, block_bytes) for _ in range(threads)]
    views = [ctypes.c_char.from_buffer(block) for block in blocks]
    addresses = [ctypes.addressof(view) for view in views]
    for address in addresses:
        ctypes.memset(address, 0, block_bytes)  # touched once, or every page is the same page of zeros
    best = 0.0
    rounds = 4
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            until = time.perf_counter() + window_s / rounds

            def scan(address: int, until: float = until) -> tuple[int, float]:
                started, done = time.perf_counter(), 0
                while time.perf_counter() < until:
                    memchr(address, 1, block_bytes)
                    done += block_bytes
                return done, time.perf_counter() - started

            read_by = list(pool.map(scan, addresses))
            best = max(best, sum(done / seconds for done, seconds in read_by))
    del views  # a mapping cannot be closed under a view
    for block in blocks:
        block.close()
    return best


def disk_read(folder: Path, *, limit_bytes: int = DISK_BYTES, limit_s: float = DISK_S) -> float | None:
    """Return bytes per second read from the largest model file below a folder, uncached; None without such a file."""
    largest = max(
        (
            path
            for pattern in ("*.gguf", "*.safetensors", "blobs/*")
            for path in folder.rglob(pattern)
            if path.is_file()
        ),
        key=lambda path: path.stat().st_size,
        default=None,
    )
    if largest is None or largest.stat().st_size < BLOCK_BYTES:
        return None
    try:
        with largest.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            buffer = bytearray(4 * MIB)
            started, done = time.perf_counter(), 0
            while done < limit_bytes and time.perf_counter() - started < limit_s:
                count = file.readinto(buffer)
                if not count:
                    break
                done += count
            return done / max(time.perf_counter() - started, 1e-9)
    except OSError:
        return None


def measured_products(
    machine: Machine, program: str | None, threads: int, *, say: Callable[[str], object], folder: Path | None
) -> Kernels:
    """Return what the engine's kernels reach by weight type; nothing without an engine or without room for a model."""
    import tempfile  # noqa: PLC0415 - only here

    from willitrun_here.calibrate.kernels import ROOM_BYTES, Kernels, measure_products  # noqa: PLC0415

    if program is None:
        say("no llama-bench is installed: the speed of the processor's kernels stays estimated")
        return Kernels()
    say(f"{program} with made-up models, {threads} threads …")
    free = machine.memory.available_bytes
    if free is not None and free < ROOM_BYTES:
        say("  not enough free memory")
        return Kernels()
    try:
        where = folder or store_folder()
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where) as inside:
            kernels = measure_products(program, threads=threads, folder=Path(inside), say=say)
    except OSError as error:
        say(f"  not measurable here: {error}")
        return Kernels()
    if not kernels.product_rates:
        say("  it measured nothing")
    return kernels


def told_busy(since: Processor | None, say: Callable[[str], object]) -> bool:
    """Tell whether other programs took so much of the processor that figures are too low, and say so."""
    share = others_share(since, processor())
    if share is None or share <= MOST_BUSY:
        return False
    say(f"  other programs took {share:.0%} of the processor: not kept. Run it again when the machine is idle.")
    return True
