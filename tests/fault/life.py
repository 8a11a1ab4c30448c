"""What became of one job: read from the events, the ledger, the queues, and what its trainers noted themselves."""

import asyncio
from collections.abc import Sequence
from itertools import groupby, pairwise

import msgspec
from tests.support.fleet import Fleet

from training_schemas.events import TERMINAL_EVENTS, JobEvent
from training_schemas.ledger import Claimed, EndEntry, JobEntry
from training_schemas.states import JobState, state_after

# Two steps of one trainer are 50 ms apart; of two trainers that overlap, steps lie in each other's span for longer.
OVERLAP = 0.2

TIMEOUT = 60.0


class Trace(msgspec.Struct, frozen=True):
    """One line of what the trainers of a job noted: a start, a phase, a step, an end."""

    what: str
    step: int
    attempt: int
    pid: int
    time: float


def read_traces(fleet: Fleet, job_id: str) -> list[Trace]:
    """All that the job's trainers have noted so far."""
    try:
        lines = (fleet.folder / "datasets" / "traces" / job_id).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Trace) for line in lines]


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """A job from its submission to its end: each event once, by its id, in the order of the log."""

    events: list[JobEvent]
    entries: list[JobEntry]
    traces: list[Trace]

    @property
    def end(self) -> JobEvent:
        """The one event that ended the job."""
        (end,) = [event for event in self.events if isinstance(event, TERMINAL_EVENTS)]
        return end

    @property
    def state(self) -> JobState:
        """What the events add up to. Raises `IllegalTransitionError` where they make no sense."""
        return state_after(self.events)

    @property
    def attempts(self) -> int:
        """How many attempts were claimed."""
        return len({entry.attempt for entry in self.entries if isinstance(entry, Claimed)})

    @property
    def holes(self) -> list[tuple[int, list[int]]]:
        """Attempts whose sequence numbers are not 1, 2, 3 and so on."""
        numbers = sorted({(event.attempt, event.sequence) for event in self.events if event.attempt})
        by_attempt = [(attempt, [n for _, n in pairs]) for attempt, pairs in groupby(numbers, key=lambda pair: pair[0])]
        return [(attempt, found) for attempt, found in by_attempt if found != list(range(1, len(found) + 1))]

    @property
    def ends(self) -> int:
        """How many terminal entries the ledger has."""
        return sum(isinstance(entry, EndEntry) for entry in self.entries)

    @property
    def twice(self) -> int:
        """How many training steps were done more than once."""
        steps = [trace.step for trace in self.traces if trace.what == "step"]
        return len(steps) - len(set(steps))

    @property
    def doubled(self) -> float:
        """For how many seconds two trainers were at work at the same time."""
        spans: dict[int, tuple[float, float]] = {}
        for trace in self.traces:
            first, _ = spans.get(trace.pid, (trace.time, 0.0))
            spans[trace.pid] = (first, trace.time)
        ordered = sorted(spans.values())
        return max((max(0.0, min(a[1], b[1]) - b[0]) for a, b in pairwise(ordered)), default=0.0)


async def read_life(fleet: Fleet, job_id: str) -> Life:
    """Everything about a job that has ended, once nothing of it is in any queue."""
    await fleet.events(job_id)
    await until_finalized(fleet, job_id)
    return (await read_lives(fleet, [job_id]))[job_id]


async def read_lives(fleet: Fleet, job_ids: Sequence[str]) -> dict[str, Life]:
    """Everything about jobs that are finalized, each under its id."""
    entries, log = await fleet.ledger(), await fleet.log()
    entries_of: dict[str, list[JobEntry]] = {job_id: [] for job_id in job_ids}
    for entry in entries:
        if isinstance(entry, JobEntry) and entry.job_id in entries_of:
            entries_of[entry.job_id].append(entry)
    events_of: dict[str, dict[str, JobEvent]] = {job_id: {} for job_id in job_ids}
    for event_id, event in log:
        if isinstance(event, JobEvent) and event.job_id in events_of:
            events_of[event.job_id].setdefault(event_id, event)
    return {
        job_id: Life(
            events=list(events_of[job_id].values()), entries=entries_of[job_id], traces=read_traces(fleet, job_id)
        )
        for job_id in job_ids
    }


async def until_finalized(fleet: Fleet, job_id: str) -> None:
    """Wait until no copy of the job is left: nothing holds a lease, nothing waits."""
    async with asyncio.timeout(TIMEOUT):
        while await fleet.depth(fleet.names.lease(job_id)) is not None or await fleet.waiting():  # noqa: ASYNC110 - a queue has no such event
            await asyncio.sleep(0.05)


def faults_of(life: Life, *, isolated: bool = False) -> list[str]:
    """What is wrong with a life, as text; nothing, if all is as promised.

    ``isolated`` means that an owner was cut off from the broker, so that for a while a second one could exist.
    """
    found: list[str] = []
    ends = [event for event in life.events if isinstance(event, TERMINAL_EVENTS)]
    if len(ends) != 1:
        found.append(f"{len(ends)} terminal events")
    if life.ends != 1:
        found.append(f"{life.ends} terminal entries in the ledger")
    if life.holes:
        found.append(f"holes in the sequence: {life.holes}")
    if not isolated and life.doubled > OVERLAP:
        found.append(f"two trainers at once for {life.doubled:.2f} s")
    return found


def show(entries: Sequence[JobEntry]) -> str:
    """The ledger, for a failure's message."""
    return "\n".join(msgspec.json.encode(entry).decode() for entry in entries)
