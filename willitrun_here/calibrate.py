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

from willitrun_here.places import state_folder

if TYPE_CHECKING:
    from willitrun_catalog.model import ModelSpec
    from willitrun_estimator.calibration import Corrections, Run
    from willitrun_estimator.plan import Plan
    from willitrun_here.calibrate_engine import Kernels
    from willitrun_here.launch.run import Comparison
    from willitrun_here.launch.target import Target
    from willitrun_probe.machine import Machine

MIB = 1024**2
BLOCK_BYTES = 64 * MIB
"""Larger than any cache share of a core, small enough that touching it first takes no time."""
WINDOW_S = 1.5
DISK_BYTES = 1024 * MIB
DISK_S = 6.0
MOST_RUNS = 64
MOST_BUSY = 0.1
"""Share of the processor that others may take: threads wait for each other, so a tenth taken costs more than that."""


def store_folder() -> Path:
    """Return the folder of the corrections; WILLITRUN_STATE names another."""
    given = os.environ.get("WILLITRUN_STATE")
    return Path(given) if given else state_folder()


def path_of(shape_hash: str, folder: Path) -> Path:
    """Return the file of one machine shape."""
    return folder / f"calibration-{shape_hash or 'unknown'}.json"


def read(shape_hash: str, folder: Path | None = None) -> Corrections | None:
    """Return the corrections of a machine shape; None without any or when the file cannot be understood."""
    try:
        data = path_of(shape_hash, folder or store_folder()).read_bytes()
    except OSError:
        return None
    from willitrun_estimator.calibration import Corrections  # noqa: PLC0415 - most machines have none

    try:
        found = msgspec.json.decode(data, type=Corrections)
    except msgspec.MsgspecError:
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
    cpu = structs.replace(
        machine.cpu,
        product_rates=corrections.product_rates,
        block_s=corrections.block_s,
        side_s=corrections.side_s,
    )
    disks = tuple(
        structs.replace(disk, read_bytes_per_s=corrections.disk_read_bytes_per_s.get(disk.path, disk.read_bytes_per_s))
        for disk in machine.disks
    )
    return structs.replace(machine, memory=memory, cpu=cpu, disks=disks)


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


def run_engine(machine: Machine, model: Path, *, program: str, now: str, folder: Path | None = None) -> tuple[Run, ...]:
    """Plan a model file, run `llama-bench` with that plan and keep both speeds. Raises what planning raises."""
    from willitrun_estimator.request import Request  # noqa: PLC0415 - only here
    from willitrun_here.ask import ask, open_model  # noqa: PLC0415
    from willitrun_here.calibrate_engine import bench  # noqa: PLC0415

    spec = open_model(str(model))
    asked = Request(engine="llama.cpp", context=512, prompt_tokens=128)
    plan = ask(machine, spec, asked, sections=frozenset({"plan"}), commands=False).plan
    if plan is not None and plan.experts_apart:
        # llama-bench is given the switch alone; blocks differ by a sixth at most, so that this many hold as much.
        fixed = min(plan.layers, plan.cpu_moe_layers + plan.cpu_moe_layers // 5 + len(plan.experts_apart))
        asked = structs.replace(asked, cpu_moe_layers=fixed)
        plan = ask(machine, spec, asked, sections=frozenset({"plan"}), commands=False).plan
    if plan is None:
        return ()
    found = bench(program, model, gpu_layers=plan.gpu_layers, threads=plan.threads, cpu_moe_layers=plan.cpu_moe_layers)
    return record_run(
        machine,
        spec,
        plan,
        decode_tokens_per_s=found.get("decode"),
        prefill_tokens_per_s=found.get("prefill"),
        prompt_tokens=128,
        depth_tokens=16,
        now=now,
        folder=folder,
    )


def record_run(
    machine: Machine,
    spec: ModelSpec,
    plan: Plan,
    *,
    decode_tokens_per_s: float | None,
    prefill_tokens_per_s: float | None,
    prompt_tokens: int,
    depth_tokens: int,
    now: str = "",
    folder: Path | None = None,
) -> tuple[Run, ...]:
    """Keep what an engine did with a plan beside what the bare model says of it, and return it.

    `depth_tokens` is the mean context while the answer was written. The model is asked without earlier runs, or a
    correction would count against itself. Raises OSError when the store cannot be written.
    """
    from willitrun_estimator.calibration import Run, prediction_of, where_of  # noqa: PLC0415 - only here

    predicted = predicted_speeds(machine, spec, plan, prompt_tokens=prompt_tokens, depth_tokens=depth_tokens)
    measured = {"decode": decode_tokens_per_s, "prefill": prefill_tokens_per_s}
    runs = tuple(
        Run(
            test="decode" if test == "decode" else "prefill",
            model=spec.name,
            quant=plan.quant,
            engine=plan.engine,
            where=where_of(plan),
            gpu_layers=plan.gpu_layers,
            cpu_moe_layers=plan.cpu_moe_layers,
            predicted_tokens_per_s=expected,
            predicted_with=prediction_of(read(machine.shape_hash, folder)),
            measured_tokens_per_s=done,
            measured_at=now or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            depth_tokens=depth_tokens if test == "decode" else prompt_tokens,
        )
        for test, done in measured.items()
        if done and (expected := predicted.get(test)) is not None
    )
    if runs:
        keep_runs(machine.shape_hash, runs, folder)
    return runs


def predicted_speeds(
    machine: Machine, spec: ModelSpec, plan: Plan, *, prompt_tokens: int, depth_tokens: int
) -> dict[str, float]:
    """Return the model's own tokens per second of a llama.cpp plan; empty where it knows nothing."""
    from willitrun_estimator.hardware import devices  # noqa: PLC0415 - only here
    from willitrun_estimator.placement import Placement, Settings  # noqa: PLC0415
    from willitrun_estimator.request import Request  # noqa: PLC0415
    from willitrun_estimator.throughput import SpeedModel  # noqa: PLC0415
    from willitrun_estimator.weights import weight_profile  # noqa: PLC0415
    from willitrun_here.ask import sheet_of  # noqa: PLC0415

    settings = Settings(
        context_tokens=plan.context_tokens, kv_type_k=plan.kv_type, kv_type_v=plan.kv_type, ubatch=plan.ubatch,
        batch=plan.batch, parallel=plan.parallel,
    )  # fmt: skip
    placement = Placement(
        gpu_layers=plan.gpu_layers,
        split=tuple(round(share) for share in plan.tensor_split),
        cpu_moe_layers=plan.cpu_moe_layers,
    )
    planned_on = devices(machine, Request(backend=plan.backend), sheet_of)
    model = SpeedModel(weight_profile(spec, plan.quant), planned_on, settings, engine=plan.engine)
    found = {
        "decode": model.decode_rate(placement, depth_tokens=depth_tokens),
        "prefill": model.prefill_rate(placement, prompt_tokens=max(1, prompt_tokens)),
    }
    return {test: rate for test, rate in found.items() if rate is not None}


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
    from willitrun_here.calibrate_engine import Kernels  # noqa: PLC0415

    threads = machine.cpu.usable_threads or 1
    known = before or Corrections()
    say(f"memory bandwidth, {threads} threads …")
    since = cpu_seconds()
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
        since = cpu_seconds()
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


def cpu_seconds() -> tuple[float, float, float] | None:
    """Return the processor's seconds since boot that were busy, all of them, and this process's; None without /proc."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, idle, waiting, *rest = (int(one) / os.sysconf("SC_CLK_TCK") for one in first)
    busy = user + nice + system + sum(rest)
    own = os.times()
    return busy, busy + idle + waiting, own.user + own.system + own.children_user + own.children_system


def told_busy(since: tuple[float, float, float] | None, say: Callable[[str], object]) -> bool:
    """Tell whether other programs took so much of the processor that figures are too low, and say so."""
    now = cpu_seconds()
    if since is None or now is None or now[1] <= since[1]:
        return False
    share = (now[0] - since[0] - (now[2] - since[2])) / (now[1] - since[1])
    if share <= MOST_BUSY:
        return False
    say(f"  other programs took {share:.0%} of the processor: not kept. Run it again when the machine is idle.")
    return True


def measured_products(
    machine: Machine, program: str | None, threads: int, *, say: Callable[[str], object], folder: Path | None
) -> Kernels:
    """Return what the engine's kernels reach by weight type; nothing without an engine or without room for a model."""
    import tempfile  # noqa: PLC0415 - only here

    from willitrun_here.calibrate_engine import ROOM_BYTES, Kernels, measure_products  # noqa: PLC0415

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
    probe = comparison.probe
    if probe is None:
        return None
    try:
        runs = record_run(
            target.machine,
            target.spec,
            target.plan,
            decode_tokens_per_s=probe.decode_tokens_per_s,
            prefill_tokens_per_s=probe.prefill_tokens_per_s,
            prompt_tokens=probe.prompt_tokens,
            depth_tokens=probe.prompt_tokens + probe.output_tokens // 2,
            now=now,
            folder=folder,
        )
    except OSError:
        return None
    return path_of(target.machine.shape_hash, folder or store_folder()) if runs else None
