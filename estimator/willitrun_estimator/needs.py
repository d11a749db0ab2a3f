"""What a layout needs, as the search sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from willitrun_estimator.placement import Kind, Placement
from willitrun_estimator.stack import Stack


class Parts(Protocol):
    """Compute buffers by the part a GPU has in a layout (`quick.Buffers`)."""

    @property
    def only(self) -> int: ...  # noqa: D102
    @property
    def first(self) -> int: ...  # noqa: D102
    @property
    def between(self) -> int: ...  # noqa: D102
    @property
    def last(self) -> int: ...  # noqa: D102


class Needs(Protocol):
    """What a layout needs, as the search sees it."""

    @property
    def expert_parts(self) -> Sequence[Sequence[tuple[str, int]]]:
        """The matrices of each block's routed experts by name and bytes, those that leave a GPU first at the front."""
        ...

    def own(self, kind: Kind, /) -> Sequence[int]:
        """Return what each GPU that takes part needs beside its span and its buffer; the host last."""
        ...

    def stack(self, context_tokens: int, /) -> Stack:
        """Return the bytes of the blocks."""
        ...

    def buffers(self, context_tokens: int, units: int, moved: int, /, *, many: bool, scattered: bool = False) -> Parts:
        """Return the compute buffers when so many units are on GPUs."""
        ...

    def per_device_bytes(self, placement: Placement, context_tokens: int, /) -> Sequence[int]:
        """Return bytes per GPU and, last, of the host."""
        ...
