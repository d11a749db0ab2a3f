"""The graph allocator's arithmetic: best fit over a list of free blocks, and how high it ever reaches.

Behaviour of `ggml_dyn_tallocr` (ggml/src/ggml-alloc.c): the smallest free block that fits is taken from its front,
the open end only when no other block fits; freed blocks merge with their neighbours.
"""

from __future__ import annotations

END = 1 << 62


class Arena:
    """One buffer during planning; `peak` is the size that it will have."""

    def __init__(self) -> None:
        self.starts = [0]
        self.lengths = [END]
        self.peak = 0

    def take(self, size: int) -> int:
        """Reserve `size` bytes (already aligned) and return their offset."""
        lengths = self.lengths
        last = len(lengths) - 1
        best, best_length = last, END + 1
        for index in range(last):
            length = lengths[index]
            if size <= length <= best_length:
                best, best_length = index, length
        offset = self.starts[best]
        if lengths[best] == size:
            del self.starts[best], lengths[best]
        else:
            self.starts[best] = offset + size
            lengths[best] -= size
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Return `size` bytes at `offset`, merged with the first neighbour that is found."""
        starts, lengths = self.starts, self.lengths
        end = offset + size
        for index, start in enumerate(starts):
            length = lengths[index]
            if start + length == offset:
                lengths[index] = length + size
                if index + 1 < len(starts) and end == starts[index + 1]:
                    lengths[index] += lengths[index + 1]
                    del starts[index + 1], lengths[index + 1]
                return
            if end == start:
                starts[index] = offset
                lengths[index] = length + size
                return
        # Not a bisection: empty blocks can leave the list out of order, and llama.cpp inserts before the first larger.
        index = next((place for place, start in enumerate(starts) if start >= offset), len(starts))
        starts.insert(index, offset)
        lengths.insert(index, size)
