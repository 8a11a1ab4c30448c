"""The ledger's entries: the turning points of every job, in the order in which the broker put them."""

from typing import Annotated

import msgspec
from msgspec import Meta

from training_schemas.base import Wire


class LedgerEntry(Wire, frozen=True, kw_only=True, tag_field="entry"):
    """Common to all entries: when it was written (unix seconds, by the writer's clock)."""

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
    """A worker owns the job for this attempt."""


class CheckpointSaved(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.checkpoint.v1"):
    """A later attempt may go on from ``path`` after ``step`` steps."""

    step: int
    path: str


class Released(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.released.v1"):
    """The owner gave the job back."""


class CancelRequested(JobEntry, frozen=True, kw_only=True, tag="training.ledger.cancelRequested.v1"):
    """Whoever owns or takes the job next is to cancel it."""


class Completed(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.completed.v1"):
    """Terminal: the result was promoted."""


class Failed(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.failed.v1"):
    """Terminal: the job failed for good."""

    reason: str


class Cancelled(AttemptEntry, frozen=True, kw_only=True, tag="training.ledger.cancelled.v1"):
    """Terminal: the job was cancelled."""


class Barrier(LedgerEntry, frozen=True, kw_only=True, tag="training.ledger.barrier.v1"):
    """A reader's own marker: when it comes back, everything written before it has been read."""

    nonce: str


TerminalEntry = Completed | Failed | Cancelled
AnyEntry = Submitted | Claimed | CheckpointSaved | Released | CancelRequested | Completed | Failed | Cancelled | Barrier

_decoder: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)


def decode_entry(body: bytes) -> AnyEntry:
    """Read one entry. Raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
    return _decoder.decode(body)
