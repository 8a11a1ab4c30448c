"""A job's history: the sum of the ledger's entries about it."""

import msgspec

from training_schemas.base import Wire
from training_schemas.ledger import (
    AnyEntry,
    AttemptEntry,
    AttemptFailed,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Claimed,
    EndEntry,
    Failed,
    Released,
    Requeued,
    Submitted,
)
from training_schemas.progress import FailureReason
from training_schemas.usage import AttemptSummary, Usage

NOTHING_USED = Usage(gpu_seconds=0.0)

# An attempt whose end was not recorded, until it is.
LOST = "lost"

# How many checkpoints are remembered: the last one may be out of reach of the next owner.
CHECKPOINTS = 3


class ClaimRecord(Wire, frozen=True, kw_only=True):
    """The base of an owner's claim: its name in the ledger, and the job's history before it."""

    claim: str
    before: "JobHistory"


class JobHistory(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a job by the ledger. ``claim`` is the name of the last claim.

    ``attempts`` are all that were claimed, ``checkpoints`` the last few, oldest first. ``counted`` are the failures
    that count towards the job's limit, ``out_of_memory`` and ``unhealthy`` those of these reasons, and ``forgiven`` the
    lost attempts that an operator has written off. ``submitted_at`` is when it was first submitted (unix seconds),
    ``requeued`` whether it was ever put back after its end.
    """

    digest: str | None = None
    submitted_at: float | None = None
    requeued: bool = False
    claim: str = ""
    attempts: tuple[AttemptSummary, ...] = ()
    checkpoints: tuple[CheckpointSaved, ...] = ()
    counted: int = 0
    out_of_memory: int = 0
    unhealthy: int = 0
    forgiven: int = 0
    cancel_requested: bool = False
    terminal: EndEntry | None = None

    @property
    def attempt(self) -> int:
        """The number of the last attempt that was claimed; 0 where there is none."""
        return self.attempts[-1].attempt if self.attempts else 0

    @property
    def saved_step(self) -> int:
        """The step of the last checkpoint; 0 where there is none."""
        return self.checkpoints[-1].step if self.checkpoints else 0

    @property
    def outcome(self) -> str | None:
        """``completed``, ``failed`` or ``cancelled``; None while the job has not ended."""
        return None if self.terminal is None else _end(self.terminal).outcome

    @property
    def lost(self) -> int:
        """How many attempts were claimed and never reported an end, since the job was last put back."""
        return sum(_was_lost(summary) for summary in self.attempts) - self.forgiven

    @property
    def cost_usd(self) -> float:
        """The cost of all attempts, as far as it is known."""
        return sum(summary.usage.cost_usd or 0.0 for summary in self.attempts)

    def after(self, entry: AnyEntry) -> "JobHistory":
        """Return the history once ``entry`` has been written too."""
        if isinstance(entry, AttemptEntry):
            return self._after_attempt(entry)
        match entry:
            case Submitted() if self.digest is None:
                return self._with(digest=entry.digest, submitted_at=entry.time)
            case Requeued():
                return self._with(
                    counted=0,
                    out_of_memory=0,
                    unhealthy=0,
                    forgiven=self.forgiven + self.lost,
                    cancel_requested=False,
                    terminal=None,
                    requeued=True,
                )
            case CancelRequested():
                return self._with(cancel_requested=True)
            case _:
                return self

    def _after_attempt(self, entry: AttemptEntry) -> "JobHistory":
        match entry:
            case Claimed() if entry.attempt > self.attempt:
                return self._with(attempts=(*self.attempts, _summary(entry, LOST)), claim=entry.claim)
            case EndEntry() if self.terminal is None:
                return self._with(attempts=self._attempts_after(_end(entry)), terminal=entry)
            # Other entries do not count if they are of an owner who has lost the job and does not know it yet.
            case CheckpointSaved() if entry.attempt == self.attempt:
                # A daemon that did not get the confirm writes it again, at another time.
                saved = (*(one for one in self.checkpoints if one.path != entry.path), entry)[-CHECKPOINTS:]
                return self._with(attempts=self._attempts_after(_summary(entry, LOST, entry.usage)), checkpoints=saved)
            case Released() if entry.attempt == self.attempt:
                return self._with(attempts=self._attempts_after(_summary(entry, "released", entry.usage)))
            case AttemptFailed() if any(
                one.attempt == entry.attempt == self.attempt and one.outcome == LOST for one in self.attempts
            ):
                return self._failed(entry)
            case _:
                return self

    def _failed(self, entry: AttemptFailed) -> "JobHistory":
        return self._with(
            attempts=self._attempts_after(_summary(entry, "failed", entry.usage, entry.reason, entry.message)),
            counted=self.counted + entry.counted,
            out_of_memory=self.out_of_memory + (entry.reason == FailureReason.OUT_OF_MEMORY),
            unhealthy=self.unhealthy + (entry.reason == FailureReason.GPU_UNHEALTHY),
        )

    def _attempts_after(self, summary: AttemptSummary) -> tuple[AttemptSummary, ...]:
        return tuple(summary if one.attempt == summary.attempt else one for one in self.attempts)

    def _with(self, **changes: object) -> "JobHistory":
        return msgspec.structs.replace(self, **changes)


def _was_lost(summary: AttemptSummary) -> bool:
    return summary.outcome == LOST or summary.reason == FailureReason.WORKER_LOST


def _summary(
    entry: AttemptEntry,
    outcome: str,
    usage: Usage | None = None,
    reason: str | None = None,
    message: str | None = None,
) -> AttemptSummary:
    return AttemptSummary(
        attempt=entry.attempt,
        worker=entry.worker,
        outcome=outcome,
        usage=usage or NOTHING_USED,
        reason=reason,
        message=message,
    )


def _end(entry: EndEntry) -> AttemptSummary:
    match entry:
        case Failed():
            return _summary(entry, "failed", entry.usage, entry.reason, entry.message)
        case Cancelled():
            return _summary(entry, "cancelled", entry.usage)
        case _:
            return _summary(entry, "completed", entry.usage)
