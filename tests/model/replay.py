"""The replay: traces of the ownership model, followed step by step by the real code on a real broker.

    python -m tests.model.replay --walks 500

Between any two steps, what is in the broker and the ledger is compared with the model's state.
"""

import argparse
import asyncio
import logging
import random
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec
import structlog
from tests.model.gate import DisagreementError
from tests.model.ownership import broken, final, go_wrong, key, moves
from tests.model.protocol import PROTOCOL
from tests.model.state import CAP, LAST, State
from tests.model.world import World

from training_worker.testing.local_broker import find_broker

LONGEST = 120


class Move(msgspec.Struct, frozen=True):
    """One step of a trace, and the model's state after it."""

    name: str
    state: State


Trace = tuple[Move, ...]


def walk(seed: int, *, faults: int = 3) -> Trace:
    """A random way through the model, with so many faults at most."""
    rng, state, trace = random.Random(seed), State(), list[Move]()
    while len(trace) < LONGEST and not final(state):
        ways = [Move(*way) for way in moves(state, PROTOCOL)]
        wrong = [Move(*way) for way in go_wrong(state)] if faults else []
        if wrong and (not ways or rng.random() < 0.1):
            faults -= 1
            ways = wrong
        ways = [way for way in ways if is_exact(way.state)]
        if not ways:
            break
        trace.append(rng.choice(ways))
        state = trace[-1].state
        assert broken(state) is None
    return tuple(trace)


def is_exact(state: State) -> bool:
    """Whether the model has counted everything so far."""
    places = (state.tier, state.lease, *(place for one in state.connections for place in (one.tier, one.lease)))
    return max(places) < CAP + 1 and sum(places) <= CAP and state.claimed < LAST


def shortest(*, faults: int) -> list[Trace]:
    """The shortest ways to all steps, each in all places of its list, and to all that else can happen."""
    start: tuple[State, int, Trace] = (State(), 0, ())
    queue, seen, found = deque([start]), {(key(State()), 0)}, dict[object, Trace]()
    while queue:
        state, failed, trace = queue.popleft()
        for cost, ways in ((0, moves(state, PROTOCOL)), (1, go_wrong(state))):
            for name, then in ways:
                new = (key(then), failed + cost)
                if failed + cost > faults or new in seen or not is_exact(then):
                    continue
                seen.add(new)
                longer = (*trace, Move(name, then))
                found.setdefault(_place(name, then), longer)
                queue.append((then, failed + cost, longer))
    return _whole(list(found.values()))


def through(step: str, *rest: str) -> list[Trace]:
    """The shortest traces with a step after which the worker has the ``rest`` of its list before it."""
    return [
        trace
        for trace in shortest(faults=1)
        if any(move.name.endswith(f": {step}") and rest == _left(move) for move in trace)
    ]


def _left(move: Move) -> tuple[str, ...]:
    return tuple(step.__name__ for step in move.state.workers[int(move.name[0])].todo)


def _place(name: str, state: State) -> object:
    me, _, step = name.partition(": ")
    return (step, state.workers[int(me)].todo) if step else name


def _whole(traces: list[Trace]) -> list[Trace]:
    """The traces that are not the beginning of another."""
    names = [tuple(move.name for move in trace) for trace in traces]
    return [
        trace
        for trace, name in zip(traces, names, strict=True)
        if not any(len(other) > len(name) and other[: len(name)] == name for other in names)
    ]


async def replay(traces: Sequence[Trace], broker_url: str, prefix: str) -> int:
    """Follow all traces, one after the other. How many steps that were; raises `DisagreementError`."""
    count = 0
    async with World(broker_url, prefix) as world:
        for trace in traces:
            count += await _replay(world, trace)
    return count


async def _replay(world: World, trace: Trace) -> int:
    await world.begin()
    state = State()
    for number, move in enumerate(trace, 1):
        try:
            await world.apply(move.name, state, move.state)
        except DisagreementError as error:
            way = "\n  ".join(one.name for one in trace[:number])
            raise DisagreementError(f"{error}\n  {way}") from error
        state = move.state
    await world.end()
    return len(trace)


def _traces(walks: int, seed: int) -> Iterator[Trace]:
    yield from shortest(faults=1)
    yield from (walk(seed + number) for number in range(walks))


def main() -> None:
    """Replay the shortest traces and so many random ones."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--walks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    logging.disable()  # what is lost here is lost on purpose
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    arguments, begun = parser.parse_args(), time.monotonic()
    traces = list(_traces(arguments.walks, arguments.seed))
    with find_broker() as broker:
        count = asyncio.run(replay(traces, broker.url, "replay"))
    sys.stdout.write(f"{len(traces)} traces, {count} steps, {time.monotonic() - begun:.1f} s: fine\n")


if __name__ == "__main__":
    main()
