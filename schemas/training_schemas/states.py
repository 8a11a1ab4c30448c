"""The states of a job, and which may follow which (see docs/states.md).

The events of a job, each applied once and in order, lead it from state to state. An event may arrive twice after a
lost confirm; its id is then the same, and the reader must ignore the second one.
"""

from collections.abc import Iterable
from enum import StrEnum

from training_schemas.events import (
    JobCancelled,
    JobCheckpoint,
    JobClaimed,
    JobCompleted,
    JobDuplicate,
    JobEvent,
    JobFailed,
    JobPhase,
    JobProgress,
    JobQueued,
    JobRejected,
    JobReleased,
    JobRetrying,
    JobSample,
)
from training_schemas.progress import Phase


class JobState(StrEnum):
    """The states in the life of a job."""

    SUBMITTED = "submitted"
    QUEUED = "queued"
    CLAIMED = "claimed"
    PREPARING = "preparing"
    TRAINING = "training"
    CHECKPOINTING = "checkpointing"
    SAMPLING = "sampling"
    EXPORTING = "exporting"
    RETRYING = "retrying"
    RELEASED = "released"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


_ENDED = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

TERMINAL_STATES = _ENDED | {JobState.REJECTED}

# The states in which a worker parts with a job; it may do so before a trainer was started, without `claimed`.
_PARTED = _ENDED | {JobState.RETRYING, JobState.RELEASED}
_WAITING = _PARTED | {JobState.CLAIMED}

# A lost worker publishes nothing: the next owner's claim may follow anything that a running job does.
_RUNNING = _WAITING | {JobState.TRAINING, JobState.CHECKPOINTING, JobState.SAMPLING, JobState.EXPORTING}

NEXT_STATES: dict[JobState, frozenset[JobState]] = {
    JobState.SUBMITTED: _ENDED | {JobState.QUEUED, JobState.REJECTED},
    JobState.QUEUED: _WAITING | {JobState.REJECTED},
    JobState.CLAIMED: _RUNNING | {JobState.PREPARING},
    JobState.PREPARING: _RUNNING | {JobState.PREPARING},
    JobState.TRAINING: _RUNNING,
    JobState.CHECKPOINTING: _RUNNING,
    JobState.SAMPLING: _RUNNING,
    JobState.EXPORTING: _WAITING | {JobState.EXPORTING},
    JobState.RETRYING: _WAITING,
    JobState.RELEASED: _WAITING,
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
    # The message was no job; another one with the same id may be, and may have been queued before.
    JobState.REJECTED: _WAITING | {JobState.QUEUED},
}

_PHASE_STATES = {
    Phase.TRAINING: JobState.TRAINING,
    Phase.CHECKPOINTING: JobState.CHECKPOINTING,
    Phase.SAMPLING: JobState.SAMPLING,
    Phase.EXPORTING: JobState.EXPORTING,
}

_EVENT_STATES: dict[type[JobEvent], JobState] = {
    JobQueued: JobState.QUEUED,
    JobRejected: JobState.REJECTED,
    JobClaimed: JobState.CLAIMED,
    JobProgress: JobState.TRAINING,
    JobCheckpoint: JobState.CHECKPOINTING,
    JobSample: JobState.SAMPLING,
    JobRetrying: JobState.RETRYING,
    JobReleased: JobState.RELEASED,
    JobCompleted: JobState.COMPLETED,
    JobFailed: JobState.FAILED,
    JobCancelled: JobState.CANCELLED,
}

# About one submission. It may be the second one of a job that is further; they do not report that job's state.
_SUBMISSION_EVENTS = (JobQueued, JobRejected, JobDuplicate)
_MOVED_BY_A_SUBMISSION = frozenset({JobState.SUBMITTED, JobState.QUEUED, JobState.REJECTED, JobState.FAILED})


class IllegalTransitionError(ValueError):
    """An event cannot follow in the job's state."""


def reported_state(event: JobEvent) -> JobState | None:
    """Return the state that an event reports by itself; None for one that reports none, such as a warning."""
    match event:
        case JobPhase():
            return _PHASE_STATES.get(event.phase, JobState.PREPARING)
        case JobDuplicate():
            return JobState(event.outcome)
        case _:
            return _EVENT_STATES.get(type(event))


def next_state(state: JobState, event: JobEvent) -> JobState:
    """The state of a job once ``event`` has happened in ``state``. Raises `IllegalTransitionError`.

    A submission's event leaves a job that is further where it is. Only `JobQueued` after a failure counts: an operator
    put the job back.
    """
    reported = reported_state(event)
    if reported is None:
        return state
    if isinstance(event, _SUBMISSION_EVENTS):
        return reported if state in _MOVED_BY_A_SUBMISSION and reported in NEXT_STATES[state] else state
    if reported not in NEXT_STATES[state]:
        raise IllegalTransitionError(f"cannot follow job {event.job_id}: {type(event).__name__} in state {state}")
    return reported


def state_after(events: Iterable[JobEvent]) -> JobState:
    """Return the state of a job after its events, from its submission on. Raises `IllegalTransitionError`.

    Late events of a superseded owner, whose attempt is lower than one already seen, are ignored.
    """
    state, attempt = JobState.SUBMITTED, 0
    for event in events:
        if event.attempt == 0 or event.attempt >= attempt:
            state, attempt = next_state(state, event), max(attempt, event.attempt)
    return state
