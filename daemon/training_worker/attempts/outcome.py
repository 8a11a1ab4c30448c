"""The possible outcomes of an attempt."""

import msgspec

from training_schemas.progress import DoneRecord, FailureReason, Fault
from training_schemas.usage import Usage
from training_worker.errors import AttemptError

NOTHING_USED = Usage(gpu_seconds=0.0)


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer succeeded; ``seconds_per_step`` is the mean duration of its steps."""

    record: DoneRecord
    usage: Usage = NOTHING_USED
    seconds_per_step: float | None = None


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer stopped before its end; a later attempt can resume after ``step`` steps."""

    step: int
    usage: Usage = NOTHING_USED


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer failed."""

    reason: FailureReason
    message: str
    faults: list[Fault] = []
    output_tail: list[str] = []
    usage: Usage = NOTHING_USED

    @classmethod
    def because_of(cls, error: AttemptError, usage: Usage = NOTHING_USED) -> "Broken":
        """Return the outcome of an attempt that cannot go on."""
        return cls(reason=error.reason, message=error.message, faults=error.faults, usage=usage)


class Detached(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer continues, and is left to the next daemon."""


Outcome = Done | Stopped | Broken
