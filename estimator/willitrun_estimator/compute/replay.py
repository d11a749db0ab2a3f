"""The allocator at work: what a device's buffer comes to for one micro-batch and context.

Blocks do the same again and again, so what a section does to a given arrangement of memory is worked out once: the
allocator is a machine whose states are arrangements and whose moves are sections.

Some architectures take a tensor, or a copy of an input, for every block before the first is computed, and every block
gives its own back. What lies beyond the next of these touches nothing until then, so that a state has a wall in its
place, and layouts with more or fewer blocks to come are in the same states: addresses behind a wall are lower by what
the wall stands for.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from willitrun_estimator.compute.allocator import END, Arena
from willitrun_estimator.compute.form import Form, evaluate
from willitrun_estimator.compute.steps import (
    ARRIVED,
    EARLY,
    GIVE,
    LATEST,
    SINCE,
    TAKE,
    TAKE_FOR_GOOD,
    TAKE_WEIGHT,
    Steps,
    decode,
)

MOST_MOVES = 20_000
"""Moves kept of all replays together, with the states that they lead to."""
ALL = 1 << 30
"""More than is ever held."""
AHEAD = EARLY, ARRIVED
"""Lists of what may be taken long before it is used."""

Move = tuple[Steps, tuple[int, ...]]
"""Steps, and the bytes of their weights."""
Opening = tuple[int, tuple[int, ...], bool]
"""A list, the sizes of the first tensors behind its wall, and whether there are more; none build a wall."""


class State:
    """One arrangement of a buffer."""

    __slots__ = ("after", "arrangement", "held")

    def __init__(self, arrangement: bytes, held: tuple[int, ...]) -> None:
        self.arrangement = arrangement
        """How many blocks are free, where the walls of `AHEAD` begin and how thick they are, and how long each list is;
        then starts and lengths of what is free, and offset and size of what is held, list by list (`steps.SINCE` …).
        """
        self.held = held
        """How long each list is."""
        self.after: dict[Move | Opening, tuple[State, int]] = {}
        """Where each move leads, and how high it reaches on the way."""


class Memory(NamedTuple):
    """The same as lists."""

    walls: list[int]
    """Where they begin."""
    thick: list[int]
    arena: Arena
    held: list[list[tuple[int, int]]]
    """Offsets and sizes."""

    @staticmethod
    def of(arrangement: bytes) -> Memory:
        """Unpack."""
        free, *numbers = array("q", arrangement)
        since, early = numbers[4:6]
        arena = Arena()
        arena.starts, arena.lengths = numbers[7 : 7 + free], numbers[7 + free : 7 + 2 * free]
        flat = iter(numbers[7 + 2 * free :])
        pairs = [*zip(flat, flat, strict=True)]
        held = [pairs[:since], pairs[since : since + early], pairs[since + early :]]
        return Memory(numbers[:2], numbers[2:4], arena, held)

    def packed(self) -> bytes:
        """Pack."""
        starts, lengths = self.arena.starts, self.arena.lengths
        flat = [number for one in self.held for pair in one for number in pair]
        counts = map(len, self.held)
        return array("q", [len(starts), *self.walls, *self.thick, *counts, *starts, *lengths, *flat]).tobytes()

    def lift(self, beyond: int, amount: int) -> None:
        """Move all that lies beyond an address."""
        self.walls[:] = [one + amount if one > beyond else one for one in self.walls]
        starts = self.arena.starts
        starts[:] = [one + amount if one > beyond else one for one in starts]
        self.arena.lengths[-1] = END - starts[-1]
        for one in self.held:
            one[:] = [(at + amount if at > beyond else at, size) for at, size in one]


EMPTY = Memory([0, 0], [0, 0], Arena(), [[], [], []]).packed()


class Asked:
    """What steps have to do with what was taken ahead."""

    def __init__(self, steps: Steps) -> None:
        takes = {packed & 31 for packed in steps.codes}
        self.taken = next((kind for kind in AHEAD if takes == {TAKE << 2 | kind}), None)
        """The list for which steps take, and do nothing else."""
        self.needed = [0, 0, 0]
        """How many of each list are named, counted from the first; all before further ones are taken."""
        gone = [0, 0, 0]
        for packed in steps.codes:
            argument, what, held = decode(packed)
            if what in {GIVE, LATEST}:
                self.needed[held] = max(self.needed[held], argument + gone[held] + 1)
                gone[held] += 1
            elif what != TAKE_FOR_GOOD:
                self.needed[held] = ALL


class Behind:
    """The tensors behind a wall."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes[::-1]
        self.bytes = sum(sizes)

    def pop(self, count: int) -> tuple[int, ...]:
        """Take the first, and return their sizes."""
        taken = tuple(self.sizes[: -count - 1 : -1])
        del self.sizes[-count:]
        self.bytes -= sum(taken)
        return taken


class Replay:
    """All states that a kind of device has been in, for given values of the sizes."""

    def __init__(self, forms: Sequence[Form], values: tuple[int, ...], alignment: int) -> None:
        """`forms` may grow: a step names its size by the place."""
        self._forms, self._values, self._alignment = forms, values, alignment
        self._sizes: dict[int, int] = {}
        self._asked: dict[Steps, Asked] = {}
        self._states: dict[bytes, State] = {}
        self.forget()

    def __len__(self) -> int:
        """Return how many states are kept."""
        return len(self._states)

    def peak(self, moves: Sequence[Move]) -> int:
        """Return the bytes of the buffer after these moves."""
        KEPT.use(self)
        behind: dict[int, Behind] = {}
        state = self._start
        at = most = lift = 0
        while at < len(moves):
            move = moves[at]
            known = state.after.get(move)
            if known is None:
                hidden = self._hidden(state, moves, at, behind)
                if hidden is not None:
                    state, top, at = hidden
                    most = max(most, top + lift)
                    lift = self._lift(behind)
                    continue
                state = self._opened(state, move[0], behind)
                lift = self._lift(behind)
                known = state.after.get(move) or self._move(state, move)
            at += 1
            state, top = known
            if top + lift > most:  # noqa: PLR1730 - a call would be half of the loop's time
                # What is lower than a wall is moved up with the rest here, and still no higher than the wall's end.
                most = top + lift
        KEPT.shorten()
        return most

    def _lift(self, behind: dict[int, Behind]) -> int:
        """Return how much lower the addresses beyond all walls are than they should be."""
        return sum(one.bytes - self._alignment for one in behind.values() if one.sizes)

    def _hidden(
        self, state: State, moves: Sequence[Move], at: int, behind: dict[int, Behind]
    ) -> tuple[State, int, int] | None:
        """Put behind a wall what moves do nothing but take ahead; returns how high that reaches, and the move behind.

        Only where all of it comes from the open end, one after the other.
        """
        kind = self._asks(moves[at][0]).taken
        if kind is None or (kind in behind and behind[kind].sizes):
            return None
        first, sizes = at, []
        while at < len(moves) and self._asks(moves[at][0]).taken == kind:
            sizes += [self._size(packed >> 5) for packed in moves[at][0].codes]
            at += 1
        memory = Memory.of(state.arrangement)
        end = memory.arena.starts[-1]
        if at == first + 1 or max(memory.arena.lengths[:-1], default=0) >= min(sizes):
            return None
        behind[kind] = Behind(sizes)
        key: Opening = kind, (), True
        known = state.after.get(key)
        if known is None:
            place = AHEAD.index(kind)
            memory.walls[place], memory.thick[place] = end, self._alignment
            memory.arena.starts[-1] += self._alignment
            memory.arena.lengths[-1] -= self._alignment
            known = self._keep(state, key, memory)
        return known[0], end + behind[kind].bytes, at

    def _asks(self, steps: Steps) -> Asked:
        known = self._asked.get(steps)
        if known is None:
            known = self._asked[steps] = Asked(steps)
        return known

    def forget(self) -> None:
        """Begin anew; states lead to one another, and nobody may look for such cycles for long."""
        for state in self._states.values():
            state.after.clear()
        self._start = State(EMPTY, (0, 0, 0))
        self._states = {EMPTY: self._start}

    def _size(self, index: int) -> int:
        size = self._sizes.get(index)
        if size is None:
            size = self._sizes[index] = self._aligned(evaluate(self._forms[index], self._values))
        return size

    def _aligned(self, amount: int) -> int:
        return -(-amount // self._alignment) * self._alignment

    def _state(self, memory: Memory) -> State:
        arrangement = memory.packed()
        known = self._states.get(arrangement)
        if known is None:
            known = self._states[arrangement] = State(arrangement, tuple(map(len, memory.held)))
        return known

    def _keep(self, state: State, key: Move | Opening, memory: Memory) -> tuple[State, int]:
        """Keep where a move leads."""
        known = state.after[key] = self._state(memory), memory.arena.peak
        KEPT.add(self)
        return known

    def _opened(self, state: State, steps: Steps, behind: dict[int, Behind]) -> State:
        """Bring before the walls what steps ask for."""
        asked = self._asks(steps)
        for kind, wanted in zip(AHEAD, asked.needed[1:], strict=True):
            hidden = behind.get(kind)
            if hidden is not None and hidden.sizes and state.held[kind] < wanted:
                sizes = hidden.pop(wanted - state.held[kind])
                key: Opening = kind, sizes, bool(hidden.sizes)
                state, _ = state.after.get(key) or self._keep(state, key, self._nearer(state, *key))
        return state

    def _nearer(self, state: State, kind: int, sizes: tuple[int, ...], more: bool) -> Memory:
        """Bring tensors before a wall, which is gone when there are no more."""
        memory = Memory.of(state.arrangement)
        place = AHEAD.index(kind)
        wall, thick = memory.walls[place], memory.thick[place]
        memory.lift(wall, sum(sizes) if more else sum(sizes) - thick)
        for size in sizes:
            memory.held[kind].append((wall, size))
            wall += size
        memory.walls[place], memory.thick[place] = (wall, thick) if more else (0, 0)
        return memory

    def _move(self, state: State, move: Move) -> tuple[State, int]:
        """Take a move for the first time."""
        steps, weights = move
        memory = Memory.of(state.arrangement)
        arena, held = memory.arena, memory.held
        take, give, sizes = arena.take, arena.give, self._sizes
        for packed in steps.codes:
            what, argument = packed >> 2 & 7, packed >> 5
            if what == GIVE:
                give(*held[packed & 3].pop(argument))
            elif what == LATEST:
                held[SINCE].append(held[packed & 3].pop(argument))
            else:
                size = self._aligned(weights[argument]) if what == TAKE_WEIGHT else sizes.get(argument)
                if size is None:
                    size = self._size(argument)
                offset = take(size)
                if what != TAKE_FOR_GOOD:
                    held[packed & 3].append((offset, size))
        return self._keep(state, move, memory)


class Kept:
    """The replays that were asked last, as many as have the moves that may be kept."""

    def __init__(self) -> None:
        self.moves: OrderedDict[Replay, int] = OrderedDict()
        """How many each has."""
        self._all = 0

    def use(self, replay: Replay) -> None:
        """Note that a replay is asked."""
        self.moves[replay] = self.moves.pop(replay, 0)

    def add(self, replay: Replay) -> None:
        """Note a move."""
        self.moves[replay] += 1
        self._all += 1

    def shorten(self) -> None:
        """Let the oldest go."""
        while self._all > MOST_MOVES:
            replay, moves = self.moves.popitem(last=False)
            self._all -= moves
            replay.forget()


KEPT = Kept()
