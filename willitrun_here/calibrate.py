"""Measuring this machine once and keeping what was found, so that later answers rest on it.

Memory bandwidth is read with `memchr` of the C library on every core: it only reads, runs at the speed of compiled
code, and ctypes gives up the interpreter's lock while it does. The store is one JSON file a machine shape, so new
hardware starts without corrections and the old file is simply no longer read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

if TYPE_CHECKING:
    from willitrun_estimator.calibration import Corrections, Run
    from willitrun_here.launch.run import Comparison
    from willitrun_here.launch.target import Target
    from willitrun_probe.machine import Machine

MIB = 1024**2
BLOCK_BYTES = 64 * MIB
"""Larger than any cache share of a core, small enough that touching it first takes no time."""
WINDOW_S = 1.5
DISK_BYTES = 1024 * MIB
DISK_S = 6.0
BENCH_S = 40.0
MOST_RUNS = 64


def store_folder() -> Path:
    """Return the folder of the corrections; WILLITRUN_STATE names another."""
    given = os.environ.get("WILLITRUN_STATE")
    if given:
        return Path(given)
    import platformdirs  # noqa: PLC0415 - not needed where a folder is given

    return Path(platformdirs.user_state_dir("willitrun-here"))


def path_of(shape_hash: str, folder: Path) -> Path:
    """Return the file of one machine shape."""
    return folder / f"calibration-{shape_hash or 'unknown'}.json"


def read(shape_hash: str, folder: Path | None = None) -> Corrections | None:
    """Return the corrections of a machine shape; None without any or when the file cannot be understood."""
    from willitrun_estimator.calibration import Corrections  # noqa: PLC0415 - most commands never ask

    try:
        found = msgspec.json.decode(path_of(shape_hash, folder or store_folder()).read_bytes(), type=Corrections)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.shape_hash == shape_hash else None


def write(corrections: Corrections, folder: Path | None = None) -> Path:
    """Keep corrections; the file is replaced in one step. Raises OSError."""
    path = path_of(corrections.shape_hash, folder or store_folder())
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(corrections), indent=1) + b"\n")
    beside.replace(path)
    return path


def remove(shape_hash: str, folder: Path | None = None) -> bool:
    """Forget a machine shape; tell whether there was anything."""
    path = path_of(shape_hash, folder or store_folder())
    if not path.exists():
        return False
    path.unlink()
    return True


def with_measurements(machine: Machine, corrections: Corrections | None) -> Machine:
    """Return a probed machine with the measured rates in it; unchanged for another machine's corrections."""
    if corrections is None or corrections.shape_hash != machine.shape_hash:
        return machine
    rate = corrections.ram_bandwidth_bytes_per_s
    memory = machine.memory
    if rate is not None:
        sources = memory.sources | {"bandwidth_bytes_per_s": "micro-benchmark"}
        memory = structs.replace(memory, bandwidth_bytes_per_s=rate, sources=sources)
    disks = tuple(
        structs.replace(disk, read_bytes_per_s=corrections.disk_read_bytes_per_s.get(disk.path, disk.read_bytes_per_s))
        for disk in machine.disks
    )
    return structs.replace(machine, memory=memory, disks=disks)


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


def bench(
    program: str, model: Path, *, gpu_layers: int, threads: int, cpu_moe_layers: int = 0, limit_s: float = BENCH_S
) -> dict[str, float]:
    """Return tokens per second of `llama-bench` by test (`decode`, `prefill`); empty when it fails or is too slow."""
    import subprocess  # noqa: PLC0415 - only when an engine is there

    command = [
        program, "-m", str(model), "-p", "128", "-n", "32", "-r", "3", "-o", "json",
        "-t", str(threads), "-ngl", str(gpu_layers),
    ]  # fmt: skip
    if cpu_moe_layers:
        command += ["-ncmoe", str(cpu_moe_layers)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, check=True)
        rows = msgspec.json.decode(done.stdout, type=list[dict[str, object]])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError):
        return {}
    found = {}
    for row in rows:
        samples = row.get("samples_ts") or [row.get("avg_ts")]
        rates = [one for one in samples if isinstance(one, float | int)] if isinstance(samples, list) else []
        if rates and max(rates) > 0:  # whatever else the machine does only takes away
            found["decode" if row.get("n_gen") else "prefill"] = float(max(rates))
    return found


def run_engine(machine: Machine, model: Path, *, program: str, now: str, folder: Path | None = None) -> tuple[Run, ...]:
    """Plan a model file, run `llama-bench` with that plan and keep both speeds. Raises what planning raises."""
    from willitrun_estimator.calibration import Run, where_of  # noqa: PLC0415 - only here
    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_here.ask import ask, open_model  # noqa: PLC0415

    spec = open_model(str(model))
    asked = Request(engine="llama.cpp", context=512, prompt_tokens=128)
    result = ask(machine, spec, asked, sections=frozenset({"plan", "speed"}), commands=False)
    plan, speed = result.plan, result.speed
    if plan is None or speed is None:
        return ()
    found = bench(program, model, gpu_layers=plan.gpu_layers, threads=plan.threads, cpu_moe_layers=plan.cpu_moe_layers)
    predicted = {"decode": speed.decode_tokens_per_s, "prefill": speed.prefill_tokens_per_s}
    runs = tuple(
        Run(
            test="decode" if test == "decode" else "prefill",
            model=spec.name,
            quant=plan.quant,
            engine="llama.cpp",
            where=where_of(plan),
            gpu_layers=plan.gpu_layers,
            cpu_moe_layers=plan.cpu_moe_layers,
            predicted_tokens_per_s=expected.expected,
            measured_tokens_per_s=found[test],
            measured_at=now,
        )
        for test, expected in predicted.items()
        if expected is not None and test in found
    )
    if runs:
        keep_runs(machine.shape_hash, runs, folder)
    return runs


def measure(
    machine: Machine, *, say: Callable[[str], object], now: str, before: Corrections | None = None
) -> Corrections:
    """Measure memory and disks of this machine, telling the progress; earlier engine runs are kept."""
    from willitrun_estimator.calibration import Corrections  # noqa: PLC0415 - only here

    threads = machine.cpu.usable_threads or 1
    say(f"memory bandwidth, {threads} threads …")
    rate = memory_bandwidth(threads)
    say(f"  {rate / 1e9:.1f} GB/s" if rate else "  not measurable here")
    disks = {}
    for disk in machine.disks:
        if disk.purpose == "home":
            continue  # no model store: a walk could take minutes
        say(f"disk under {disk.path} …")
        speed = disk_read(Path(disk.path))
        say(f"  {speed / 1e9:.2f} GB/s" if speed else "  no model file to read")
        if speed:
            disks[disk.path] = speed
    return Corrections(
        shape_hash=machine.shape_hash,
        measured_at=now,
        ram_bandwidth_bytes_per_s=rate,
        disk_read_bytes_per_s=disks,
        runs=before.runs if before else (),
    )


def keep_runs(shape_hash: str, runs: Sequence[Run], folder: Path | None = None) -> Path:
    """Add engine runs to a machine's corrections; a newer run of the same plan replaces the older. Raises OSError."""
    from willitrun_estimator.calibration import Corrections  # noqa: PLC0415 - only here

    known = read(shape_hash, folder) or Corrections(shape_hash=shape_hash)
    fresh = {_key(run) for run in runs}
    kept = [run for run in known.runs if _key(run) not in fresh]
    return write(structs.replace(known, runs=(*kept, *runs)[-MOST_RUNS:]), folder)


def _key(run: Run) -> tuple[object, ...]:
    return (run.test, run.model, run.quant, run.engine, run.gpu_layers, run.cpu_moe_layers)


def keep_measured(target: Target, comparison: Comparison, *, now: str = "", folder: Path | None = None) -> Path | None:
    """Keep what an engine that was started here did; None when it measured nothing or the store cannot be written."""
    from willitrun_estimator.calibration import Run, where_of  # noqa: PLC0415 - only here

    probe, plan = comparison.probe, target.plan
    if probe is None:
        return None
    pairs = (
        ("decode", comparison.planned_decode_tokens_per_s, probe.decode_tokens_per_s),
        ("prefill", comparison.planned_prefill_tokens_per_s, probe.prefill_tokens_per_s),
    )
    runs = [
        Run(
            test="decode" if test == "decode" else "prefill",
            model=target.spec.name,
            quant=plan.quant,
            engine=plan.engine,
            where=where_of(plan),
            gpu_layers=plan.gpu_layers,
            cpu_moe_layers=plan.cpu_moe_layers,
            predicted_tokens_per_s=planned,
            measured_tokens_per_s=done,
            measured_at=now or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        for test, planned, done in pairs
        if planned and done > 0
    ]
    try:
        return keep_runs(target.machine.shape_hash, runs, folder) if runs else None
    except OSError:
        return None
