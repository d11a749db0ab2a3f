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
    token_s: float
    prompt_s: float


def measure_products(
    program: str, *, threads: int, folder: Path, say: Callable[[str], object], limit_s: float = TYPES_S
) -> tuple[tuple[ProductRate, ...], float | None]:
    """Return the rate of every weight type that there was time for, and the seconds of a block beside its weights.

    Nothing where the engine fails. Raises OSError when the files cannot be written.
    """
    until = time.monotonic() + limit_s
    timings: dict[str, Timing] = {}
    narrow: Timing | None = None
    for kind in TYPES:
        found = timed(program, WIDE, kind, threads=threads, folder=folder, limit_s=until - time.monotonic())
        if found is None:
            break
        timings[kind] = found
        say(f"  {kind:7} {found.matrix_bytes / found.token_s / 1e9:6.1f} GB/s of weights")
        if kind == "Q8_0":
            narrow = timed(program, NARROW, kind, threads=threads, folder=folder, limit_s=until - time.monotonic())
    block_s = seconds_per_block(timings.get("Q8_0"), narrow)
    return tuple(rate_of(kind, timing, block_s or 0.0) for kind, timing in timings.items()), block_s


def seconds_per_block(wide: Timing | None, narrow: Timing | None) -> float | None:
    """Solve two models of one type for the seconds of a block, with the seconds of a byte the same in both."""
    if wide is None or narrow is None:
        return None
    determinant = wide.matrix_bytes * narrow.layers - narrow.matrix_bytes * wide.layers
    return max(0.0, (wide.matrix_bytes * narrow.token_s - narrow.matrix_bytes * wide.token_s) / determinant)


def rate_of(kind: str, timing: Timing, block_s: float) -> ProductRate:
    """Return what the weights alone took, without the blocks' own seconds; a prompt reads them once."""
    blocks = timing.layers * block_s
    reading = max(timing.token_s - blocks, timing.token_s / 2)
    computing = max(timing.prompt_s - timing.token_s, timing.prompt_s / 2)
    return ProductRate(
        weight_type=kind,
        decode_bytes_per_s=timing.matrix_bytes / reading,
        prefill_ops_per_s=2 * PROMPT_TOKENS * timing.matrix_elements / computing,
    )


def timed(program: str, shape: Shape, kind: str, *, threads: int, folder: Path, limit_s: float) -> Timing | None:
    """Write a model, let llama-bench run it, and remove it; None when time is up or the engine fails."""
    from willitrun_estimator.tensors import tensors  # noqa: PLC0415 - only here
    from willitrun_here.made_up import metadata_of, write  # noqa: PLC0415

    if limit_s <= 0:
        return None
    one = shape.spec(1)
    block_bytes, elements = matrices(one, kind)
    layers = max(2, round(FILE_BYTES * (1 + threads // THREADS_PER_FILE) / block_bytes))
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
        matrix_elements=layers * elements,
        token_s=1.0 / found["decode"],
        prompt_s=PROMPT_TOKENS / found["prefill"],
    )


def matrices(one: ModelSpec, kind: str) -> tuple[int, int]:
    """Return the bytes and the number of weights in the matrices of a model's one block."""
    from willitrun_estimator.tensors import tensors  # noqa: PLC0415 - only here

    shapes = [tensor.shape for tensor in tensors(one) if tensor.layer == 0 and len(tensor.shape) > 1]
    return sum(row_bytes(kind, row) * rows for row, rows in shapes), sum(row * rows for row, rows in shapes)


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
