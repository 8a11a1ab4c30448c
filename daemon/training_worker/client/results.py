"""The results of the client's calls."""

from enum import StrEnum

import msgspec

from training_presets.estimates import CostEstimate
from training_presets.planner import Plan
from training_worker.ledger.job_history import LOST, JobHistory


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a submission: the broker has the job, and this is the plan it will be trained by.

    ``digest`` is the job's SHA-256, by which events name this very job. ``estimate`` is for the GPU that the plan's
    tier is priced by.
    """

    job_id: str
    digest: str
    plan: Plan
    estimate: CostEstimate
    submitted_at: float


class CancelState(StrEnum):
    """The state of a job when its cancellation was requested."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class CancelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a cancellation.

    ``waiting``: the worker that claims the job cancels it. ``running``: the worker that trains it got the command;
    ``attempt`` may be unknown if it began long ago. ``completed``, ``failed``, ``cancelled``: the job had ended before,
    and nothing happens. ``unknown``: the ledger has no such job.
    """

    job_id: str
    state: CancelState
    worker: str | None = None
    attempt: int | None = None


def cancel_answer(job_id: str, before: JobHistory, *, delivered: bool) -> CancelAnswer:
    """Return the answer, by the job's history ``before`` the cancellation, and whether an owner got the command."""
    last = before.attempts[-1] if before.attempts else None
    if before.outcome is not None:
        return CancelAnswer(job_id=job_id, state=CancelState(before.outcome))
    if delivered and last is not None and last.outcome == LOST:
        return CancelAnswer(job_id=job_id, state=CancelState.RUNNING, worker=last.worker, attempt=last.attempt)
    if delivered:
        return CancelAnswer(job_id=job_id, state=CancelState.RUNNING)
    known = last is not None or before.digest is not None
    return CancelAnswer(job_id=job_id, state=CancelState.WAITING if known else CancelState.UNKNOWN)
