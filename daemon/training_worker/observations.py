"""What a worker tells whoever measures it: frozen records, passed to a function. Nothing here knows of Prometheus."""

from collections.abc import Callable
from enum import StrEnum

import msgspec

from training_schemas.jobs import TrainingType
from training_schemas.usage import Usage


class AttemptOutcome(StrEnum):
    """How an attempt ended for this worker."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RELEASED = "released"
    RETRIED = "retried"
    SUPERSEDED = "superseded"


class AttemptStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A slot owns a job."""

    training_type: TrainingType


class AttemptEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A slot is done with a job."""

    training_type: TrainingType
    outcome: AttemptOutcome
    usage: Usage


Observer = Callable[[AttemptStarted | AttemptEnded], None]
