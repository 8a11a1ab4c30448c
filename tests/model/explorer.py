"""The explorer: visits every state that a model can reach, and reports what breaks on the way."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

import msgspec

S = TypeVar("S")

STUCK = "stuck"


Moves = Iterable[tuple[str, S]]


class Model(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """What is explored. States with the same ``key`` count as one; ``final`` must stay within reach of all.

    A fault is a move on which nobody may count, and of which there is only a number.
    """

    start: S
    moves: Callable[[S], Moves[S]]
    faults: Callable[[S], Moves[S]]
    key: Callable[[S], Hashable]
    broken: Callable[[S], str | None]
    final: Callable[[S], bool]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found: the broken invariant with a way to it that has the fewest faults, or None."""

    states: int
    broken: str | None = None
    trace: tuple[str, ...] = ()


class Explorer(Generic[S]):
    """Visits first what needs no fault, then what needs one, and so on: whatever breaks has the fewest faults."""

    def __init__(self, model: Model[S]) -> None:
        self._model = model
        self._states: list[S] = []
        self._numbers: dict[Hashable, int] = {}
        self._came_from: list[tuple[int, str] | None] = []
        self._before: list[list[int]] = []  # by moves, not by faults

    def run(self, *, faults: int) -> Verdict:
        """Visit all that at most ``faults`` faults lead to, until something breaks."""
        layer = [self._enter(self._model.start, None)]
        for left in range(faults, -1, -1):
            for number in layer:
                if (broken := self._model.broken(self._states[number])) is not None:
                    return self._verdict(broken, number)
                layer.extend(self._move(number))
            if left:
                layer = [new for number in layer for new in self._fail(number)]
        stuck = self._first_stuck()
        return Verdict(states=len(self._states)) if stuck is None else self._verdict(STUCK, stuck)

    def _move(self, number: int) -> Iterator[int]:
        """The states that are new, one move from here."""
        for name, state in self._model.moves(self._states[number]):
            then = self._numbers.get(self._model.key(state))
            if then is None:
                then = self._enter(state, (number, name))
                yield then
            self._before[then].append(number)

    def _fail(self, number: int) -> Iterator[int]:
        """The states that are new, one fault from here."""
        for name, state in self._model.faults(self._states[number]):
            if self._model.key(state) not in self._numbers:
                yield self._enter(state, (number, name))

    def _enter(self, state: S, came_from: tuple[int, str] | None) -> int:
        self._numbers[self._model.key(state)] = number = len(self._states)
        self._states.append(state)
        self._came_from.append(came_from)
        self._before.append([])
        return number

    def _first_stuck(self) -> int | None:
        """The first state from which no final one can be reached without a fault."""
        queue = [number for number, state in enumerate(self._states) if self._model.final(state)]
        fine = set(queue)
        while queue:
            new = set(self._before[queue.pop()]) - fine
            fine |= new
            queue.extend(new)
        return next((number for number in range(len(self._states)) if number not in fine), None)

    def _verdict(self, broken: str, number: int) -> Verdict:
        trace: list[str] = []
        while (came_from := self._came_from[number]) is not None:
            number, name = came_from
            trace.append(name)
        return Verdict(states=len(self._states), broken=broken, trace=tuple(reversed(trace)))
