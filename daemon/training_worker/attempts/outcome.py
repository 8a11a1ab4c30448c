"""How an attempt ended."""

import msgspec

from training_schemas.progress import DoneRecord, FailureReason, Fault
from training_schemas.usage import Usage
from training_worker.errors import AttemptError

NOTHING_USED = Usage(gpu_seconds=0.0)


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer ended well; ``seconds_per_step`` is what a step of it took on average."""

    record: DoneRecord
    usage: Usage = NOTHING_USED
    seconds_per_step: float | None = None


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer stopped before its end; a later attempt can go on after ``step`` steps."""

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
        """The outcome of an attempt that could not go on."""
        return cls(reason=error.reason, message=error.message, faults=error.faults, usage=usage)


class Detached(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer runs on, and is left to the daemon that comes next."""


Outcome = Done | Stopped | Broken
