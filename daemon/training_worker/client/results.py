"""What the client's calls are answered with."""

from enum import StrEnum

import msgspec

from training_presets.estimates import CostEstimate
from training_presets.planner import Plan
from training_worker.ledger.job_history import LOST, JobHistory


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a submission is answered with: the broker has the job, and this is the plan it will be trained by.

    ``digest`` is the job's SHA-256, by which events name this very job. ``estimate`` is for the card that the plan's
    tier is priced by.
    """

    job_id: str
    digest: str
    plan: Plan
    estimate: CostEstimate
    submitted_at: float


class CancelState(StrEnum):
    """What a job was when its cancellation was asked for."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class CancelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a cancellation.

    ``waiting``: whoever takes the job cancels it. ``running``: the worker that trains it was told; ``attempt`` may be
    unknown if it began long ago. ``completed``, ``failed``, ``cancelled``: the job had ended before, and nothing
    happens. ``unknown``: the ledger does not speak of such a job.
    """

    job_id: str
    state: CancelState
    worker: str | None = None
    attempt: int | None = None


def cancel_answer(job_id: str, before: JobHistory, *, told: bool) -> CancelAnswer:
    """The answer, from what was true ``before`` the cancellation, and from whether an owner was ``told``."""
    last = before.attempts[-1] if before.attempts else None
    if before.outcome is not None:
        return CancelAnswer(job_id=job_id, state=CancelState(before.outcome))
    if told and last is not None and last.outcome == LOST:
        return CancelAnswer(job_id=job_id, state=CancelState.RUNNING, worker=last.worker, attempt=last.attempt)
    if told:
        return CancelAnswer(job_id=job_id, state=CancelState.RUNNING)
    known = last is not None or before.digest is not None
    return CancelAnswer(job_id=job_id, state=CancelState.WAITING if known else CancelState.UNKNOWN)
