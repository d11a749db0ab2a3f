"""Hyper-parameters of a GGUF file by name, with the per-layer arrays that some models have."""

from __future__ import annotations

from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.readers.gguf import GgufHeader, Value

MAX_BLOCKS = 512
"""`LLAMA_MAX_LAYERS` of src/llama-hparams.h in https://github.com/ggml-org/llama.cpp."""
MAX_SIZE = 1 << 31


class Hyper:
    """The metadata of one header, read as an architecture reads it."""

    def __init__(self, header: GgufHeader) -> None:
        self.path = header.path
        self.metadata = header.metadata
        self.architecture = self.text("general.architecture")
        self.blocks = self.size("block_count", largest=MAX_BLOCKS)

    def find(self, key: str) -> Value | None:
        """Find a value by its full key or by its key within the architecture."""
        return self.metadata.get(key if key.startswith(("general.", "split.")) else f"{self.architecture}.{key}")

    def text(self, key: str) -> str:
        """Get a string that must be there; raises `FileFormatError`."""
        value = self.metadata.get(key)
        if not isinstance(value, str) or not value:
            raise self.error(key, "has no value" if value is None else f"is {value!r}, not a name")
        return value

    def size(self, key: str, *, largest: int = MAX_SIZE) -> int:
        """Get a positive number that must be there; raises `FileFormatError`."""
        value = self.number(key, 0, largest=largest)
        if not value:
            raise self.error(key, "is 0" if self.find(key) == 0 else "is missing")
        return value

    def number(self, key: str, default: int = 0, *, largest: int = MAX_SIZE) -> int:
        """Get a number that may be absent; of a per-layer array, the largest entry."""
        value = self.find(key)
        if value is None:
            return default
        if isinstance(value, tuple) and value and not isinstance(value[0], str):
            value = max(value)
        return self._checked(key, value, largest)

    def per_layer(self, key: str, default: int | tuple[int, ...] = 0) -> tuple[int, ...]:
        """Get a number per block: an array, or one value for all of them; raises `FileFormatError`."""
        value = self.find(key)
        if value is None:
            return (default,) * self.blocks if isinstance(default, int) else default
        if not isinstance(value, tuple) or hasattr(value, "_fields"):
            return (self._checked(key, value, MAX_SIZE),) * self.blocks
        if len(value) < self.blocks:
            raise self.error(key, f"lists {len(value)} values for {self.blocks} blocks")
        return tuple(self._checked(key, entry, MAX_SIZE) for entry in value[: self.blocks])

    def flags(self, key: str) -> tuple[bool, ...] | None:
        """Get a per-block pattern written as an array; None where there is none. Short ones end in False."""
        value = self.find(key)
        if not isinstance(value, tuple) or hasattr(value, "_fields"):
            return None
        flags = [bool(entry) for entry in value[: self.blocks]]
        return tuple(flags + [False] * (self.blocks - len(flags)))

    def error(self, key: str, reason: str) -> FileFormatError:
        """Build the error for a value that is missing or impossible."""
        known = key.startswith(("general.", "split.")) or not hasattr(self, "architecture")
        return FileFormatError(self.path, reason, field=key if known else f"{self.architecture}.{key}")

    def _checked(self, key: str, value: object, largest: int) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, int):
            raise self.error(key, f"is {value!r}, not a whole number")
        if not 0 <= value <= largest:
            raise self.error(key, f"is {value}, outside 0..{largest}")
        return value
