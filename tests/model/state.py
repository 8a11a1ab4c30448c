"""What there is: two workers, one job, and a broker."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

# More copies than this in one place are not counted, which keeps the space finite.
CAP = 2

# Beyond this attempt numbers are shifted down.
LAST = 3


class Connection(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """A connection as the broker sees it: the deliveries that it holds, its lock, its consumer on the lease queue."""

    tier: int = 0
    lease: int = 0
    lock: bool = False
    consuming: bool = False

    @property
    def copies(self) -> int:
        """How many copies of the job it holds."""
        return self.tier + self.lease


class Worker(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """A daemon, its run folder and its trainer.

    ``link`` is its connection; ``ghost`` an earlier one that the broker has not yet given up. ``todo`` is what it is
    about to do, ``attempt`` the number of its attempt, ``folder`` the attempt of its run folder (0: none), and
    ``decided`` what the run folder has of its end. ``named``: the ledger's last claim is its own.
    """

    daemon: Literal["up", "killed", "gone"] = "up"
    link: Connection | None = Connection()
    ghost: Connection | None = None
    todo: tuple[Callable[..., Any], ...] = ()
    attempt: int = 0
    folder: int = 0
    decided: str = ""
    named: bool = False
    trainer: Literal["none", "running", "done", "failed", "stopped"] = "none"

    @property
    def idle(self) -> bool:
        """Whether it is connected and in between two jobs."""
        return self.link is not None and not self.todo and not self.folder

    @property
    def holding(self) -> bool:
        """Whether it is connected, owns the job and is free to begin something."""
        return self.link is not None and not self.todo and self.folder > 0


class State(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Copies in the queues, what the ledger has (last attempt, number of ends), whether the end was published.

    ``queue``: there is a lease queue.
    """

    tier: int = 1
    lease: int = 0
    queue: bool = False
    claimed: int = 0
    ends: int = 0
    published: bool = False
    workers: tuple[Worker, Worker] = (Worker(), Worker())

    def but(self, **changes: Any) -> "State":
        """The same with other values; queues are capped."""
        for queue in changes.keys() & {"tier", "lease"}:
            changes[queue] = min(CAP, changes[queue])
        return msgspec.structs.replace(self, **changes)

    def worker(self, me: int, **changes: Any) -> "State":
        """The same with another worker ``me``."""
        changed = msgspec.structs.replace(self.workers[me], **changes)
        workers = (changed, self.workers[1]) if me == 0 else (self.workers[0], changed)
        return msgspec.structs.replace(self, workers=workers)

    def link(self, me: int, **changes: Any) -> "State":
        """The same with another connection of worker ``me``."""
        link = self.workers[me].link
        assert link is not None
        return self.worker(me, link=msgspec.structs.replace(link, **changes))

    @property
    def connections(self) -> list[Connection]:
        """All connections that the broker believes in."""
        return [c for w in self.workers for c in (w.link, w.ghost) if c is not None]

    @property
    def copies(self) -> int:
        """How many copies of the job there are."""
        return self.tier + self.lease + sum(c.copies for c in self.connections)

    @property
    def locked(self) -> bool:
        """Whether anybody has the lock."""
        return any(connection.lock for connection in self.connections)


def renumber(state: State) -> State:
    """Keep the attempts' numbers small: it only matters which is the last, and that they differ."""
    if state.claimed <= LAST:
        return state
    for me, worker in enumerate(state.workers):
        attempt, folder = (number and max(1, number - 1) for number in (worker.attempt, worker.folder))
        state = state.worker(me, attempt=attempt, folder=folder)
    return state.but(claimed=LAST)


def drop_ghost(state: State, me: int) -> State:
    """The broker gets back what a dead connection held, and frees its lock."""
    ghost = state.workers[me].ghost or Connection()
    return state.worker(me, ghost=None).but(tier=state.tier + ghost.tier, lease=state.lease + ghost.lease)


def cut(state: State, me: int) -> State:
    """The worker has lost its connection; the broker has not noticed yet. Of two such, it has given up the older."""
    worker = state.workers[me]
    if worker.link is None:
        return state
    ghost = worker.link if worker.link != Connection() else None
    attempt = worker.folder and worker.attempt
    return drop_ghost(state, me).worker(me, link=None, ghost=ghost, todo=(), attempt=attempt)


def give_up(state: State, me: int) -> State:
    """The worker closes its connection: the broker knows at once."""
    return drop_ghost(cut(state, me), me)
