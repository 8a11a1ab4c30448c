"""The workers of a fleet, by their events: which are online, what each has, and what it does."""

from enum import StrEnum

import msgspec

from training_schemas.events import (
    CardState,
    Event,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerOffline,
    WorkerOnline,
    WorkerQuarantined,
)

# A worker that has missed this many heartbeats counts as silent.
MOST_MISSED = 3

# A worker's interval until its first heartbeat names it, seconds.
USUAL_INTERVAL = 30.0


class WorkerCondition(StrEnum):
    """The condition of a worker: ``silent`` is one that has missed three heartbeats without going offline."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"
    OFFLINE = "offline"
    SILENT = "silent"


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """A worker by its last event; ``last_seen_at`` is when it published that (unix seconds).

    ``cards`` are as in its heartbeats, before the first of which only their names and memory are known. ``why`` is the
    reason that it gave for draining, or for going offline.
    """

    worker: str
    condition: WorkerCondition
    last_seen_at: float
    host: str | None = None
    version: str | None = None
    simulated: bool = False
    cards: list[CardState] = []
    engines: list[str] = []
    disk_free_mib: int | None = None
    interval_seconds: float = USUAL_INTERVAL
    why: str | None = None


class Workers:
    """The states of all workers, one event after the other."""

    def __init__(self) -> None:
        self._known: dict[str, WorkerState] = {}

    def apply(self, event: Event, time: float) -> None:
        """Apply the next event; ``time`` is when it was published (unix seconds). Events of jobs are ignored."""
        before = self._known.get(event.worker) or WorkerState(
            worker=event.worker, condition=WorkerCondition.OPEN, last_seen_at=time, simulated=event.simulated
        )
        after = _after(before, event)
        if after is not None:
            self._known[event.worker] = msgspec.structs.replace(after, last_seen_at=time)

    def states(self, now: float) -> list[WorkerState]:
        """Return all workers by name, as they are ``now`` (unix seconds)."""
        return [_as_of(self._known[name], now) for name in sorted(self._known)]


def _after(before: WorkerState, event: Event) -> WorkerState | None:
    replace = msgspec.structs.replace
    match event:
        case WorkerOnline():
            # The worker has just connected, perhaps for the first time: its heartbeats report a pause.
            cards = [CardState(gpu=gpu.uuid, name=gpu.name, memory_mib=gpu.memory_mib) for gpu in event.gpus]
            known = {"version": event.version, "engines": event.engines, "host": event.host, "cards": cards}
            return replace(before, condition=WorkerCondition.OPEN, why=None, **known)
        case WorkerHeartbeat():
            draining = before.condition is WorkerCondition.DRAINING
            return replace(
                before,
                condition=before.condition if draining else WorkerCondition(event.taking),
                version=event.version,
                host=event.host or before.host,
                cards=event.cards,
                engines=event.engines,
                disk_free_mib=event.disk_free_mib,
                interval_seconds=event.interval_seconds,
            )
        case WorkerQuarantined():
            reason = None if event.recovered else event.reason
            cards = [replace(card, quarantined=reason) if card.gpu == event.gpu else card for card in before.cards]
            return replace(before, cards=cards)
        case WorkerDraining():
            return replace(before, condition=WorkerCondition.DRAINING, why=event.why)
        case WorkerOffline():
            return replace(before, condition=WorkerCondition.OFFLINE, why=event.why, cards=[])
        case _:
            return None


def _as_of(state: WorkerState, now: float) -> WorkerState:
    missed = now - state.last_seen_at > MOST_MISSED * state.interval_seconds
    if state.condition is not WorkerCondition.OFFLINE and missed:
        return msgspec.structs.replace(state, condition=WorkerCondition.SILENT)
    return state
