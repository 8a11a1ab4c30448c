"""The ledger's entries: the milestones of every job, in the order in which the broker put them."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from training_schemas.base import Wire
from training_schemas.usage import Usage


class LedgerEntry(Wire, frozen=True, kw_only=True, tag_field="entry"):
    """The field of all entries: when it was written (unix seconds, by the writer's clock)."""

    time: float


class JobEntry(LedgerEntry, frozen=True, kw_only=True):
    """An entry about one job."""

    job_id: str


class AttemptEntry(JobEntry, frozen=True, kw_only=True):
    """An entry about one attempt at a job, by its owner."""

    attempt: Annotated[int, Meta(ge=0)]
    worker: str


class Submitted(JobEntry, frozen=True, kw_only=True, tag="training.ledger.submitted.v1"):
    """The job passed the intake; ``digest`` is the SHA-256 of its canonical JSON."""

    digest: str


class Claimed(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.claimed.v1"):
    """A worker owns the job for this attempt; ``claim`` is a name that no other claim has."""

    claim: str = ""


class CheckpointSaved(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.checkpoint.v1"):
    """A later attempt may resume from ``path`` after ``step`` steps.

    ``settings`` are those that it has to keep to resume exactly, by their wire names: the base's bits, the images of a
    step, the optimizer.
    """

    step: int
    path: str
    usage: Usage | None = None
    settings: dict[str, Any] | None = None


class Released(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.released.v1"):
    """The owner returned the job to its queue."""

    usage: Usage | None = None


class AttemptFailed(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.attemptFailed.v1"):
    """The attempt failed, and the job will be retried; ``counted`` states whether it counts towards `maxAttempts`."""

    reason: str
    message: str
    counted: bool
    usage: Usage


class Requeued(JobEntry, frozen=True, kw_only=True, tag="training.ledger.requeued.v1"):
    """An operator put a failed job back: its end and its failures no longer count."""


class CancelRequested(JobEntry, frozen=True, kw_only=True, tag="training.ledger.cancelRequested.v1"):
    """A cancellation was requested: whoever owns or claims the job next must cancel it."""


class EndEntry(AttemptEntry, frozen=True, kw_only=True):
    """The field of all terminal entries: ``event`` is the encoded event that reports the end, as it is published.

    Whoever finds an end whose event may not have been published publishes it again, with the same id.
    """

    event: msgspec.Raw = msgspec.Raw(b"")
    usage: Usage | None = None


class Completed(EndEntry, frozen=True, kw_only=True, tag="training.ledger.completed.v1"):
    """Terminal: the result was promoted."""


class Failed(EndEntry, frozen=True, kw_only=True, tag="training.ledger.failed.v1"):
    """Terminal: the job failed for good."""

    reason: str
    message: str = ""


class Cancelled(EndEntry, frozen=True, kw_only=True, tag="training.ledger.cancelled.v1"):
    """Terminal: the job was cancelled."""


class Barrier(LedgerEntry, frozen=True, kw_only=True, tag="training.ledger.barrier.v1"):
    """A reader's own marker: when it comes back, everything written before it has been read."""

    nonce: str


TerminalEntry = Completed | Failed | Cancelled
AnyEntry = (
    Submitted
    | Requeued
    | Claimed
    | CheckpointSaved
    | Released
    | AttemptFailed
    | CancelRequested
    | Completed
    | Failed
    | Cancelled
    | Barrier
)

_decoder: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)


def decode_entry(body: bytes) -> AnyEntry:
    """Read one entry. Raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
    return _decoder.decode(body)
