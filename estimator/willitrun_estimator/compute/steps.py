"""What the allocator does, as numbers: steps, and what they have in common."""

from __future__ import annotations

from msgspec import Struct

from willitrun_estimator.compute.form import Dim, Form, form, plus

TAKE, TAKE_FOR_GOOD, TAKE_WEIGHT, GIVE, LATEST = range(5)
"""What a step does."""
SINCE, EARLY, ARRIVED, INPUTS = range(4)
"""Lists of what is held: taken while sections are computed, from the start, or as copies that a split begins with. In
the steps of a section inputs are in a list of their own, where each has its place whatever became of others; in those
of a whole graph (`programs.expanded`) they are among what is taken from the start."""

Name = tuple[int | None, str]
"""A weight: how many blocks after the section's own (None for one outside the blocks), and its name."""


class Steps(Struct, frozen=True, eq=False):
    """The allocator's steps on one device during one section. Equal ones are the same object (`Known`)."""

    codes: tuple[int, ...]
    """One number each (`code`). Arguments are: of TAKE an index of a size, of TAKE_WEIGHT one into `weights`, of GIVE a
    place in one of the lists of what is held, which does not have what is taken for good. LATEST puts a place last
    among what is held since: between sections that is in the order in which the tensors came that have the memory.
    """
    weights: tuple[Name, ...]
    """The weights whose copies are taken."""


NOTHING = Steps((), ())
"""Where a device has nothing to do."""


def code(argument: int, what: int, held: int) -> int:
    """Pack a step."""
    return argument << 5 | what << 2 | held


def decode(packed: int) -> tuple[int, int, int]:
    """Unpack a step."""
    return packed >> 5, packed >> 2 & 7, packed & 3


class Known:
    """Sizes, layouts and steps that graphs and traces share, so that equal ones are told by a number or by identity."""

    def __init__(self) -> None:
        self.sizes: dict[Form, int] = {}
        """Each size with its index."""
        self.forms: list[Form] = []
        """The same by index."""
        self._layouts: dict[tuple[tuple[Dim, ...], int], int] = {}
        self._steps: dict[tuple[tuple[int, ...], tuple[Name, ...]], Steps] = {}

    def size(self, size: Form) -> int:
        """Return the index of a size."""
        index = self.sizes.setdefault(size, len(self.forms))
        if index == len(self.forms):
            self.forms.append(size)
        return index

    def widened(self, index: int, gap_bytes: int) -> int:
        """Return the index of a size with some bytes more."""
        return self.size(plus(self.forms[index], form((gap_bytes,), 1))) if gap_bytes else index

    def layout(self, dims: tuple[Dim, ...], element_bytes: int) -> int:
        """Return a number, from 1 on, that only tensors of these dimensions and this element size have."""
        return self._layouts.setdefault((dims, element_bytes), len(self._layouts) + 1)

    def steps(self, codes: tuple[int, ...], weights: tuple[Name, ...]) -> Steps:
        """Return the one object for these steps."""
        if not codes:
            return NOTHING
        known = self._steps.get((codes, weights))
        if known is None:
            known = self._steps[codes, weights] = Steps(codes, weights)
        return known
