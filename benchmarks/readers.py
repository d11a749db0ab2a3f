"""How fast models are read and listed: header of a large vocabulary, first and second scan of a full disk.

Run from the repository: `python benchmarks/readers.py`. Prints each figure beside its bar and fails when one is missed.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from willitrun_catalog.readers.gguf import read_header
from willitrun_catalog.readers.local import scan
from willitrun_catalog.readers.places import Places
from willitrun_catalog.readers.source import open_file

VOCABULARY = 250_000
MERGES = 250_000
BLOCKS = 60
FILES = 1000
HEADER_BAR_S = 0.050
FIRST_SCAN_BAR_S = 3.0
SECOND_SCAN_BAR_S = 0.3


def text(value: bytes) -> bytes:
    """Encode a string as GGUF does."""
    return struct.pack("<Q", len(value)) + value


def model(vocabulary: int, merges: int, size_bytes: int, path: Path) -> None:
    """Write a GGUF file of a dense model that is all header and a hole."""
    numbers = {
        b"context_length": 131072,
        b"embedding_length": 4096,
        b"block_count": BLOCKS,
        b"attention.head_count": 32,
        b"attention.head_count_kv": 8,
    }
    tokens = [b"\xe2\x96\x81t%x" % number for number in range(vocabulary)]
    pairs = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
        text(b"general.file_type") + struct.pack("<II", 4, 15),
        *(text(b"llama." + key) + struct.pack("<II", 4, value) for key, value in numbers.items()),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(tokens)) + b"".join(map(text, tokens)),
        text(b"tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, len(tokens)) + b"\1\0\0\0" * len(tokens),
        text(b"tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, merges) + text(b"\xe2\x96\x81a b") * merges,
    ]
    names = [b"token_embd.weight", b"output_norm.weight"]
    for block in range(BLOCKS):
        names += [b"blk.%d.%s.weight" % (block, part) for part in (b"attn_q", b"attn_k", b"attn_v", b"attn_output")]
        names += [b"blk.%d.%s.weight" % (block, part) for part in (b"ffn_up", b"ffn_gate", b"ffn_down")]
    infos = [text(name) + struct.pack("<IQQIQ", 2, 256, 256, 12, index * 36864) for index, name in enumerate(names)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(max(size_bytes, len(head) + 36864 * (len(infos) + 1)))


def best_of(times: int, run: Callable[[], object]) -> float:
    """Take the shortest of several runs, in seconds."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> int:
    """Measure, print and compare."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        large = top / "large.gguf"
        model(VOCABULARY, MERGES, 400 << 30, large)

        def header() -> None:
            with open_file(large) as source:
                read_header(source)

        stores = top / "models"
        stores.mkdir()
        for number in range(FILES):
            model(2000, 0, 0, stores / f"model-{number:04d}-Q4_K_M.gguf")
        places = Places(lm_studio=(stores,), scan_cache=top / "scan.json")
        rows = [("header, 250,000 tokens and merges, file of 400 GiB", best_of(5, header), HEADER_BAR_S)]
        start = time.perf_counter()
        first = scan(places)
        rows.append((f"first scan of {len(first.models)} files", time.perf_counter() - start, FIRST_SCAN_BAR_S))
        rows.append(("second scan, from its cache", best_of(3, lambda: scan(places)), SECOND_SCAN_BAR_S))
        if len(first.models) != FILES:
            sys.exit(f"{len(first.models)} of {FILES} files were listed")
    for name, seconds, bar in rows:
        failed |= seconds > bar
        print(f"{name:<55} {seconds * 1000:9.1f} ms   bar {bar * 1000:6.0f} ms   x{seconds / bar:.2f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
