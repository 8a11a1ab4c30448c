"""Who owns a job, as a model: two workers, one job, and a broker on which everything can happen in any order.

    python -m tests.model.ownership --faults 3

What a worker does is a list of steps (`Protocol`); a change of docs/protocol.md is tried here first. Between any two
steps a connection may be cut, a daemon or a host die, the broker restart, a trainer fail, a stop be requested: as
often as there are faults. Invariants:

    lost      until its end has been published, a job has a copy somewhere
    terminal  the ledger has at most one end, and none is published that it does not have
    doubled   two trainers run at once only while one of them is cut off
    twins     no two run folders are of the same attempt
    stuck     without further faults the end is published, and then no copy and no run folder is left

The grace queue and the delay queues are the tier queue here: a worker may leave a copy there for as long as it likes.
What is written into the ledger for others than the owner (released, failed, checkpoints) is left out. What the model
does not know: times, cancellations on their way, more than one slot a worker, and the arguments of queues.
"""

import argparse
import sys
import time
from collections.abc import Hashable, Iterator

import msgspec
from tests.model.explorer import Explorer, Model, Verdict
from tests.model.protocol import PROTOCOL, Protocol, lock, read_ledger, stop_trainer
from tests.model.state import CAP, Connection, State, Worker, cut, drop_ghost, give_up


def work(state: State, me: int, protocol: Protocol) -> Iterator[tuple[str, State]]:
    """What a connected worker can do next: the next step of its list, or the first of another."""
    worker = state.workers[me]
    if worker.todo:
        step, rest = worker.todo[0], worker.todo[1:]
        if (then := step(state.worker(me, todo=rest), me, protocol)) is not None:
            yield step.__name__, then
    elif worker.idle and state.tier:
        yield "consume", state.link(me, tier=1).worker(me, todo=protocol.claim, attempt=1).but(tier=state.tier - 1)
    elif worker.holding:
        for name in _choices(worker):
            decided = "" if name == "renew" else name
            yield name, state.worker(me, todo=getattr(protocol, name), decided=decided)


def _choices(worker: Worker) -> tuple[str, ...]:
    """The lists of steps that an owner may begin, by what its trainer does; what was once decided is carried out."""
    if worker.decided:
        return (worker.decided,)
    match worker.trainer:
        case "done":
            return ("finish",)
        case "failed":
            return ("finish", "retry_here", "release")
        case "stopped":  # by a cancellation, or by a stop
            return ("finish", "release")
        case _:
            return ("renew",)


def train(state: State, me: int) -> Iterator[tuple[str, State]]:
    """What happens on the worker's host, connected or not."""
    worker = state.workers[me]
    if worker.trainer == "running":
        yield "training ends", state.worker(me, trainer="done")
        if worker.link is None:
            yield "orphan stops itself", state.worker(me, trainer="stopped")
    if worker.trainer == "none" and worker.folder and not worker.todo and worker.daemon == "up":
        yield "trainer starts", state.worker(me, trainer="running")
    if worker.daemon == "killed":
        # A trainer that is not found was never started, or is gone.
        trainer = "stopped" if worker.folder and worker.trainer == "none" else worker.trainer
        yield "daemon restarts", state.worker(me, daemon="up", trainer=trainer)


def connect(state: State, me: int, protocol: Protocol) -> Iterator[tuple[str, State]]:
    """How connections come, and how the broker gives them up."""
    worker = state.workers[me]
    if worker.daemon == "up" and worker.link is None:
        yield "reconnect", state.worker(me, link=Connection(), todo=protocol.rejoin if worker.folder else ())
    if worker.ghost is not None:
        yield "broker gives ghost up", drop_ghost(state, me)


def deliver(state: State, me: int) -> Iterator[tuple[str, State]]:
    """The broker gives the lease queue's copies to whoever consumes it."""
    worker = state.workers[me]
    if state.lease and worker.link and worker.link.consuming:
        yield "lease copy arrives", state.link(me, lease=min(CAP, worker.link.lease + state.lease)).but(lease=0)
    if state.lease and worker.ghost and worker.ghost.consuming:
        ghost = msgspec.structs.replace(worker.ghost, lease=min(CAP, worker.ghost.lease + state.lease))
        yield "lease copy goes to ghost", state.worker(me, ghost=ghost).but(lease=0)


def expire(state: State) -> Iterator[tuple[str, State]]:
    """What time does to the copies that nobody holds."""
    if state.lease and not any(connection.consuming for connection in state.connections):
        yield "lease expires", state.but(lease=state.lease - 1, tier=state.tier + 1)


def worker_faults(state: State, me: int) -> Iterator[tuple[str, State]]:
    """What can go wrong with one worker."""
    worker = state.workers[me]
    if worker.link is not None:
        yield "connection is cut", cut(state, me)
    if worker.daemon == "up":
        # The kernel closes the connection: the broker knows at once.
        yield "daemon is killed", give_up(state, me).worker(me, daemon="killed", attempt=worker.folder)
    if worker.daemon != "gone" and state.workers[1 - me].daemon != "gone":
        yield "host dies", cut(state, me).worker(me, daemon="gone", attempt=0, folder=0, decided="", trainer="none")
    if worker.trainer == "running":
        yield "trainer fails", state.worker(me, trainer="failed")
        if worker.daemon == "up":
            yield "stop is asked for", state.worker(me, trainer="stopped")


def broker_faults(state: State) -> Iterator[tuple[str, State]]:
    """The broker restarts: it forgets every connection."""
    if state.connections:
        for me in (0, 1):
            state = give_up(state, me)
        yield "broker restarts", state


def moves(state: State, protocol: Protocol) -> Iterator[tuple[str, State]]:
    """What can happen next if nothing goes wrong."""
    yield from expire(state)
    for me in (0, 1):
        for happen in (work(state, me, protocol), train(state, me), connect(state, me, protocol), deliver(state, me)):
            for name, then in happen:
                yield f"{me}: {name}", then


def go_wrong(state: State) -> Iterator[tuple[str, State]]:
    """What can go wrong next."""
    yield from broker_faults(state)
    for me in (0, 1):
        for name, then in worker_faults(state, me):
            yield f"{me}: {name}", then


def broken(state: State) -> str | None:
    """The invariant that does not hold, or None."""
    if not state.published and not state.copies:
        return "lost"
    if state.ends > 1 or (state.published and not state.ends):
        return "terminal"
    if all(worker.trainer == "running" and not cut_off(worker) for worker in state.workers):
        return "doubled"
    if state.workers[0].folder == state.workers[1].folder > 0:
        return "twins"
    return None


def cut_off(worker: Worker) -> bool:
    """Whether it cannot yet know that the job is no longer its own."""
    return worker.link is None or any(step in worker.todo for step in (lock, read_ledger, stop_trainer))


def final(state: State) -> bool:
    """Whether the end was published, and nothing of the job is left."""
    return state.published and not state.copies and not any(worker.folder for worker in state.workers)


def key(state: State) -> Hashable:
    """The state without the workers' names: they are alike."""
    return (
        (state.tier, state.lease, state.queue, state.claimed, state.ends, state.published),
        frozenset(state.workers),
    )


def explore(protocol: Protocol, *, faults: int) -> Verdict:
    """Visit every state that can be reached with this many faults."""
    model = Model(
        start=State(),
        moves=lambda state: moves(state, protocol),
        faults=go_wrong,
        key=key,
        broken=broken,
        final=final,
    )
    return Explorer(model).run(faults=faults)


def main() -> None:
    """Explore the protocol as it is, and print what was found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--faults", type=int, default=3)
    faults, begun = parser.parse_args().faults, time.monotonic()
    verdict = explore(PROTOCOL, faults=faults)
    lines = [f"{verdict.states} states, {faults} faults, {time.monotonic() - begun:.1f} s: {verdict.broken or 'fine'}"]
    sys.stdout.write("\n  ".join((*lines, *verdict.trace)) + "\n")
    sys.exit(verdict.broken is not None)


if __name__ == "__main__":
    main()
