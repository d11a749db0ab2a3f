"""Measuring what the installed llama.cpp does with each weight type on this processor, with models made up for it.

A model of one type is read from memory for every token, so `llama-bench` tells the rate of its kernels with all threads
together; two shapes tell what a block costs beside its weights. Nothing is downloaded, and the files are gone after.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from willitrun_catalog.block_types import row_bytes
from willitrun_catalog.model import Attention, Dense, Layer, ModelSpec
from willitrun_probe.machine import ProductRate

BENCH_S = 40.0
TYPES = ("Q4_K", "Q6_K", "Q8_0", "F16", "Q5_K", "IQ4_XS", "Q4_0", "Q3_K", "IQ3_S", "Q2_K", "BF16", "MXFP4", "IQ2_XS")
"""The most used first: time may be up before the last."""
BOTH_SHAPES = frozenset({"Q4_K", "Q8_0"})
"""Types whose kernels are built in the two usual ways; what comes beside the weights is the mean of both."""
LARGE_TYPE, LARGE_TIMES = "Q8_0", 4
"""On one of them the effect of a model's size on prompts is measured too."""
FILE_BYTES = 256 * 1024**2
"""More than the caches of a desktop; servers, whose caches grow with their cores, get a multiple."""
THREADS_PER_FILE = 32
ROOM_BYTES = 2 * 1024**3
"""Free memory without which no model is made up."""
TYPES_S = 38.0
PROMPT_TOKENS, OUTPUT_TOKENS, REPETITIONS = 128, 16, 3


class Shape(Struct, frozen=True, kw_only=True):
    """Sizes of a made-up model's blocks."""

    hidden: int
    width: int
    heads: int
    kv_heads: int

    def spec(self, layers: int) -> ModelSpec:
        """Return a model of so many blocks."""
        head = self.hidden // self.heads
        attention = Attention(heads=self.heads, kv_heads=self.kv_heads, key_dim=head, value_dim=head)
        return ModelSpec(
            name="made-up",
            title="made-up",
            architecture="llama",
            source="calibrate",
            hidden_size=self.hidden,
            vocab_size=512,
            tied_embeddings=False,
            max_context_tokens=4096,
            layers=(Layer(mixers=(attention,), ffn=Dense(width=self.width)),) * layers,
        )


WIDE = Shape(hidden=2048, width=8192, heads=32, kv_heads=8)
"""As Llama 3.2 1B: products take nearly all of the time."""
NARROW = Shape(hidden=768, width=2048, heads=12, kv_heads=4)
"""As models of a few hundred million weights: what comes with every block shows."""


class Timing(Struct, frozen=True, kw_only=True):
    """What llama-bench told of one made-up model."""

    layers: int
    matrix_bytes: int
    matrix_elements: int
    sides: int
    """Rows and columns of all matrices."""
    token_s: float
    prompt_s: float

    @property
    def prompt_layer_s(self) -> float:
        """Seconds of a prompt per block, the reading of the weights apart."""
        return (self.prompt_s - self.token_s) / self.layers


class Kernels(Struct, frozen=True, kw_only=True):
    """What the installed engine does on this processor."""

    product_rates: tuple[ProductRate, ...] = ()
    block_s: float | None = None
    side_s: float | None = None


def measure_products(
    program: str, *, threads: int, folder: Path, say: Callable[[str], object], limit_s: float = TYPES_S
) -> Kernels:
    """Return the rate of every weight type that there was time for, and what comes beside the weights.

    Nothing where the engine fails. Raises OSError when the files cannot be written.
    """
    until = time.monotonic() + limit_s
    timings: dict[str, Timing] = {}
    beside: list[tuple[float, float]] = []
    slower = 1.0
    for kind in TYPES:
        found = timed(program, WIDE, kind, threads=threads, folder=folder, limit_s=until - time.monotonic())
        if found is None:
            break
        timings[kind] = found
        say(f"  {kind:7} {found.matrix_bytes / found.token_s / 1e9:6.1f} GB/s of weights")
        if kind in BOTH_SHAPES:
            narrow = timed(program, NARROW, kind, threads=threads, folder=folder, limit_s=until - time.monotonic())
            if narrow is not None:
                beside.append((seconds_per_block(found, narrow), seconds_per_side(found, narrow)))
        if kind == LARGE_TYPE:
            left_s = until - time.monotonic()
            large = timed(program, WIDE, kind, threads=threads, folder=folder, limit_s=left_s, times=LARGE_TIMES)
            slower = 1.0 if large is None else max(1.0, large.prompt_layer_s / found.prompt_layer_s)
    if not timings:
        return Kernels()
    block_s, side_s = (sum(values) / len(values) for values in zip(*beside, strict=True)) if beside else (None, None)
    rates = (rate_of(kind, timing, block_s or 0.0, side_s or 0.0, slower) for kind, timing in timings.items())
    return Kernels(product_rates=tuple(rates), block_s=block_s, side_s=None if side_s is None else side_s * slower)


def seconds_per_block(wide: Timing, narrow: Timing) -> float:
    """Solve two models of one type for the seconds of a block, with the seconds of a byte the same in both."""
    return solved((wide.matrix_bytes, wide.layers, wide.token_s), (narrow.matrix_bytes, narrow.layers, narrow.token_s))


def seconds_per_side(wide: Timing, narrow: Timing) -> float:
    """Solve them for the seconds of a matrix row or column and prompt token, with those of an operation the same."""
    one, other = (
        (timing.matrix_elements, timing.sides, (timing.prompt_s - timing.token_s) / PROMPT_TOKENS)
        for timing in (wide, narrow)
    )
    return solved(one, other)


def solved(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """Return y of `a x + b y = c` given twice as (a, b, c), 0 where it came out below."""
    determinant = one[0] * other[1] - other[0] * one[1]
    return max(0.0, (one[0] * other[2] - other[0] * one[2]) / determinant)


def rate_of(kind: str, timing: Timing, block_s: float, side_s: float, slower: float) -> ProductRate:
    """Return what the weights alone took, without what comes beside them; a prompt reads them once.

    `slower` is what a prompt takes more in a model of the usual size: more pages than translations are kept for.
    """
    reading = max(timing.token_s - timing.layers * block_s, timing.token_s / 2)
    prompt_s = timing.prompt_s - timing.token_s
    computing = max(prompt_s - PROMPT_TOKENS * timing.sides * side_s, prompt_s / 2)
    return ProductRate(
        weight_type=kind,
        decode_bytes_per_s=timing.matrix_bytes / reading,
        prefill_ops_per_s=2 * PROMPT_TOKENS * timing.matrix_elements / (computing * slower),
    )


def timed(
    program: str, shape: Shape, kind: str, *, threads: int, folder: Path, limit_s: float, times: int = 1
) -> Timing | None:
    """Write a model, let llama-bench run it, and remove it; None when time is up or the engine fails."""
    from willitrun_estimator.tensors import tensors  # noqa: PLC0415 - only here
    from willitrun_here.calibrate.made_up import metadata_of, write  # noqa: PLC0415

    if limit_s <= 0:
        return None
    one = shape.spec(1)
    shapes = matrices(one)
    block_bytes = sum(row_bytes(kind, row) * rows for row, rows in shapes)
    layers = max(2, round(times * FILE_BYTES * (1 + threads // THREADS_PER_FILE) / block_bytes))
    spec = shape.spec(layers)
    listed = ((tensor.name, tensor.shape, "F32" if len(tensor.shape) == 1 else kind) for tensor in tensors(spec))
    path = folder / f"made-up-{shape.hidden}-{kind}.gguf"
    try:
        write(path, metadata_of(spec), listed)
        found = bench(
            program, path, gpu_layers=0, threads=threads, limit_s=limit_s, prompt=PROMPT_TOKENS, output=OUTPUT_TOKENS,
            more=("-nopo", "1"),
        )  # fmt: skip
    finally:
        path.unlink(missing_ok=True)
    if set(found) != {"decode", "prefill"}:
        return None
    return Timing(
        layers=layers,
        matrix_bytes=layers * block_bytes,
        matrix_elements=layers * sum(row * rows for row, rows in shapes),
        sides=layers * sum(row + rows for row, rows in shapes),
        token_s=1.0 / found["decode"],
        prompt_s=PROMPT_TOKENS / found["prefill"],
    )


def matrices(one: ModelSpec) -> list[tuple[int, int]]:
    """Return row length and rows of the matrices of a model's one block."""
    from willitrun_estimator.tensors import tensors  # noqa: PLC0415 - only here

    shapes = (tensor.shape for tensor in tensors(one) if tensor.layer == 0 and len(tensor.shape) > 1)
    return [(row, rows) for row, rows in shapes]


def bench(
    program: str,
    model: Path,
    *,
    gpu_layers: int,
    threads: int,
    cpu_moe_layers: int = 0,
    limit_s: float = BENCH_S,
    prompt: int = 128,
    output: int = 32,
    more: tuple[str, ...] = (),
) -> dict[str, float]:
    """Return tokens per second of `llama-bench` by test (`decode`, `prefill`); empty when it fails or is too slow."""
    import subprocess  # noqa: PLC0415 - only when an engine is there

    command = [
        program, "-m", str(model), "-p", str(prompt), "-n", str(output), "-r", str(REPETITIONS), "-o", "json",
        "-t", str(threads), "-ngl", str(gpu_layers), *more,
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
