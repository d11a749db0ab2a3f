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
        best, best_length = -1, END + 1
        for index, length in enumerate(self.lengths):
            if size <= length <= best_length:
                best, best_length = index, length
        offset = self.starts[best]
        end = offset + size
        if best_length == size:
            del self.starts[best], self.lengths[best]
        else:
            self.starts[best] = end
            self.lengths[best] = best_length - size
        if end > self.peak:  # noqa: PLR1730 - a call would take as long as the rest
            self.peak = end
        return offset

    def give(self, offset: int, size: int) -> None:
        """Return `size` bytes at `offset`, merged with the first neighbour that is found."""
        starts, lengths = self.starts, self.lengths
        end = offset + size
        for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
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
