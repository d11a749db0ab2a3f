"""Throw damaged and hostile headers at both readers and hold them to their promises.

    python scripts/fuzz_readers.py                       1,000,000 executions of a seeded mutation engine
    python scripts/fuzz_readers.py --runs 20000 --seed 7 a short slice, another seed
    python scripts/fuzz_readers.py --atheris             coverage-guided, where atheris is installed

For every input: no crash, nothing but the documented error, no more than a second, and no more memory than 64 MiB over
the size of what was read. An input that breaks a promise is written beside the script's output and named.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import sys
import time
from pathlib import Path

from willitrun_catalog.errors import CatalogError
from willitrun_catalog.readers.checkpoint import Checkpoint, model_from_checkpoint
from willitrun_catalog.readers.gguf import read_header
from willitrun_catalog.readers.gguf_model import model_from_headers
from willitrun_catalog.readers.safetensors import StoredTensor, read_tensors
from willitrun_catalog.readers.source import MemorySource

LONGEST_S = 1.0
MEMORY_BYTES = 64 << 20
MAX_CORPUS = 500
INTERESTING = (0, 1, 2, 3, 7, 8, 9, 16, 31, 32, 63, 64, 127, 128, 255, 256, 512, 4096, 65535, 65536, (1 << 31) - 1,
               1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 32, "max_position_embeddings": 4096,
}  # fmt: skip


def text(value: bytes) -> bytes:
    """Encode a string as GGUF does."""
    return struct.pack("<Q", len(value)) + value


def gguf_seeds() -> list[bytes]:
    """Build small whole headers that reach every branch of the reader."""
    seeds = []
    for architecture, extra, parts in (
        (b"llama", {}, (b"attn_q", b"attn_k", b"ffn_up", b"ffn_down")),
        (b"gemma3", {b"attention.sliding_window": 64}, (b"attn_q", b"ffn_down")),
        (b"deepseek2", {b"attention.kv_lora_rank": 32, b"attention.key_length": 40, b"attention.key_length_mla": 24,
                        b"attention.value_length_mla": 16}, (b"attn_kv_a_mqa", b"ffn_down_exps")),
        (b"qwen3next", {b"ssm.conv_kernel": 4, b"ssm.inner_size": 64, b"ssm.state_size": 8, b"ssm.group_count": 2},
         (b"ssm_conv1d", b"ssm_ba")),
        (b"never-seen", {}, (b"shortconv.conv", b"attn_q")),
    ):  # fmt: skip
        numbers = {b"block_count": 2, b"context_length": 4096, b"embedding_length": 64,
                   b"attention.head_count": 4, b"attention.head_count_kv": 2, **extra}  # fmt: skip
        pairs = [text(b"general.architecture") + struct.pack("<I", 8) + text(architecture)]
        pairs += [text(architecture + b"." + key) + struct.pack("<II", 4, value) for key, value in numbers.items()]
        words = b"".join(text(b"t%d" % n) for n in range(70))
        pairs.append(text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 70) + words)
        pairs.append(text(b"a.flags") + struct.pack("<IIQ4?", 9, 7, 4, True, False, True, True))
        pairs.append(text(b"a.ratio") + struct.pack("<If", 6, 0.5))
        names = [b"token_embd.weight", *(b"blk.%d.%s.weight" % (n, part) for n in range(2) for part in parts)]
        infos = [text(name) + struct.pack("<IQQIQ", 2, 64, 32, 0, i * 8192) for i, name in enumerate(names)]
        seeds.append(b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos))
    return seeds


def safetensors_seeds() -> list[bytes]:
    """Build small whole safetensors headers."""
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight",
             "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.experts.3.down_proj.qweight",
             "model.layers.0.mlp.experts.3.down_proj.scales"]  # fmt: skip
    seeds = []
    for dtype, width in (("BF16", 2), ("F8_E4M3", 1), ("U8", 1), ("I32", 4)):
        table, at = {}, 0
        for name in names:
            table[name] = {"dtype": dtype, "shape": [4, 8], "data_offsets": [at, at + 32 * width]}
            at += 32 * width
        encoded = json.dumps(table).encode()
        seeds.append(struct.pack("<Q", len(encoded)) + encoded)
    return seeds


def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Damage an input in one to six places."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(out)) if out else 0
        # Damage in place goes deepest: most other damage shifts everything behind it.
        match chance.choice((0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7)):
            case 0:
                out[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                out[at : at + 8] = struct.pack("<Q", chance.choice(INTERESTING))
            case 2:
                out[at : at + 4] = struct.pack("<I", chance.choice(INTERESTING) & 0xFFFFFFFF)
            case 3:
                del out[at : at + chance.randint(1, 32)]
            case 4:
                out[at:at] = out[at : at + chance.randint(1, 64)]
            case 5:
                begin = chance.randrange(len(other))
                out[at:at] = other[begin : begin + chance.randint(1, 64)]
            case 6:
                del out[at:]
            case _:
                number = b"%d" % chance.choice(INTERESTING)
                out[at : at + chance.randint(0, 3)] = chance.choice((b"-", b"", b"\xff", b'"', b"{", b"[")) + number
    return bytes(out)


def execute(data: bytes) -> bool:
    """Read an input as either kind of file, up to a model; nothing but `CatalogError` may come out.

    Returns whether it was taken for a model.
    """
    # The file is claimed to be far longer than the header, as real ones are.
    source = MemorySource(data, "fuzz", len(data) + (1 << 20))
    try:
        if data[:4] == b"GGUF":
            model_from_headers([read_header(source)], source="fuzz", file_name="fuzz.gguf")
        else:
            build(read_tensors(source))
    except CatalogError:
        return False
    return True


def build(tensors: list[StoredTensor]) -> None:
    """Make a model of whatever tensors came out."""
    whole = Checkpoint(config=CONFIG, quant_config=None, tensors=tensors, file_bytes=1, files=())
    model_from_checkpoint(whole, name="fuzz", path="fuzz", source="fuzz")


def checked(data: bytes, folder: Path) -> tuple[float, bool]:
    """Execute one input, time it, and stop with its name when it breaks a promise."""
    start = time.perf_counter()
    try:
        taken = execute(data)
    except Exception:
        path = folder / f"crash-{abs(hash(data)) & 0xFFFFFFFF:08x}"
        path.write_bytes(data)
        print(f"broken promise: {path}", file=sys.stderr)
        raise
    seconds = time.perf_counter() - start
    if seconds > LONGEST_S:
        path = folder / f"slow-{abs(hash(data)) & 0xFFFFFFFF:08x}"
        path.write_bytes(data)
        sys.exit(f"{path}: took {seconds:.2f} s")
    return seconds, taken


def run(runs: int, seed: int, folder: Path) -> int:
    """Run the mutation engine; some inputs that are still models join the corpus."""
    chance = random.Random(seed)  # noqa: S311 - reproducible on purpose
    corpus = gguf_seeds() + safetensors_seeds()
    for data in corpus:
        checked(data, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    slowest, models, started = 0.0, 0, time.perf_counter()
    for number in range(runs):
        data = mutate(chance.choice(corpus), chance.choice(corpus), chance)
        took, taken = checked(data, folder)
        slowest, models = max(slowest, took), models + taken
        if taken and number % 500 == 0 and len(corpus) < MAX_CORPUS:
            corpus.append(data)
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f"{runs} executions, seed {seed}: {runs / seconds:.0f} per second, "
          f"{models} taken for models, slowest {slowest * 1000:.1f} ms, "
          f"memory grew by {grown / (1 << 20):.1f} MiB")  # fmt: skip
    return int(grown > MEMORY_BYTES)


def run_atheris(runs: int, folder: Path) -> int:
    """Run coverage-guided fuzzing with https://github.com/google/atheris."""
    import atheris  # noqa: PLC0415 - an optional tool

    atheris.instrument_all()
    seeds = folder / "corpus"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(gguf_seeds() + safetensors_seeds()):
        (seeds / f"seed-{number}").write_bytes(data)
    limits = [f"-runs={runs}", "-timeout=1", "-rss_limit_mb=512", "-max_len=65536", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, str(seeds)], execute)
    atheris.Fuzz()
    return 0


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.atheris:
        return run_atheris(options.runs, options.folder)
    return run(options.runs, options.seed, options.folder)


if __name__ == "__main__":
    sys.exit(main())
