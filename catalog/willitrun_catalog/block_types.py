"""The block types of ggml: how many weights share a block, and how many bytes a block takes.

Source: `ggml/src/ggml-common.h` and `ggml/src/ggml.c` of https://github.com/ggml-org/llama.cpp (type traits).
"""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from willitrun_catalog.errors import CatalogError


class BlockType(Struct, frozen=True):
    """One storage type of a tensor."""

    name: str
    block_elements: int
    block_bytes: int
    fallback: str | None = None
    """What llama-quantize takes instead when a row is not a multiple of the block; None is F16."""

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8 * self.block_bytes / self.block_elements


BLOCK_TYPES: dict[str, BlockType] = {
    block.name: block
    for block in (
        BlockType("F64", 1, 8),
        BlockType("F32", 1, 4),
        BlockType("F16", 1, 2),
        BlockType("BF16", 1, 2),
        BlockType("I8", 1, 1),
        BlockType("I16", 1, 2),
        BlockType("I32", 1, 4),
        BlockType("I64", 1, 8),
        BlockType("Q1_0", 128, 18),
        BlockType("Q2_0", 64, 18, "Q4_0"),
        BlockType("Q4_0", 32, 18),
        BlockType("Q4_1", 32, 20),
        BlockType("Q5_0", 32, 22),
        BlockType("Q5_1", 32, 24),
        BlockType("Q8_0", 32, 34),
        BlockType("Q8_1", 32, 36),
        BlockType("Q2_K", 256, 84, "Q4_0"),
        BlockType("Q3_K", 256, 110, "Q4_0"),
        BlockType("Q4_K", 256, 144, "Q5_0"),
        BlockType("Q5_K", 256, 176, "Q5_1"),
        BlockType("Q6_K", 256, 210, "Q8_0"),
        BlockType("Q8_K", 256, 292),
        BlockType("IQ1_S", 256, 50, "IQ4_NL"),
        BlockType("IQ1_M", 256, 56, "IQ4_NL"),
        BlockType("IQ2_XXS", 256, 66, "IQ4_NL"),
        BlockType("IQ2_XS", 256, 74, "IQ4_NL"),
        BlockType("IQ2_S", 256, 82, "IQ4_NL"),
        BlockType("IQ3_XXS", 256, 98, "IQ4_NL"),
        BlockType("IQ3_S", 256, 110, "IQ4_NL"),
        BlockType("IQ4_NL", 32, 18),
        BlockType("IQ4_XS", 256, 136, "IQ4_NL"),
        BlockType("TQ1_0", 256, 54, "Q4_0"),
        BlockType("TQ2_0", 256, 66, "Q4_0"),
        BlockType("MXFP4", 32, 17),
        BlockType("NVFP4", 64, 36),
    )
}


class UnknownBlockType(CatalogError):  # noqa: N818 - named like its kin
    """No such storage type."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown tensor type {name!r}", advice=f"known types: {', '.join(BLOCK_TYPES)}")


def block_type(name: str) -> BlockType:
    """Find a storage type by its name in any case; raises `UnknownBlockType`."""
    found = BLOCK_TYPES.get(name) or BLOCK_TYPES.get(name.upper())
    if found is None:
        raise UnknownBlockType(name)
    return found


@lru_cache(maxsize=4096)
def row_bytes(name: str, elements: int) -> int:
    """Bytes of one row of `elements` weights, rounded up to whole blocks; raises `UnknownBlockType`."""
    block = block_type(name)
    return -(-elements // block.block_elements) * block.block_bytes


def tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this shape (row length first)."""
    rows = 1
    for size in shape[1:]:
        rows *= size
    return row_bytes(name, shape[0]) * rows


@lru_cache(maxsize=4096)
def fitting_type(name: str, row_elements: int) -> str:
    """Find the type that a row of this length really gets.

    A row that is not a whole number of blocks falls back to a 32-element type, and to F16 when that does not fit
    either (`tensor_type_fallback` in `src/llama-quant.cpp`).
    """
    block = block_type(name)
    if row_elements % block.block_elements == 0:
        return block.name
    second = block.fallback or block.name
    return second if row_elements % BLOCK_TYPES[second].block_elements == 0 else "F16"
