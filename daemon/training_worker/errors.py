"""The errors of training-worker. A type exists only where some code handles it.

TrainingWorkerError
    SettingsError           the operator must change something; exit 78
    BrokerError             the broker cannot be reached, or refuses
        NoBrokerError       none is named, installed, or to be had from Docker (training_worker.testing.local_broker)
            BrokerLostError     the connection or channel was lost; the step is retried on a new one
    JobLockedError          another worker owns the job
        NoGpuError          the host has no GPU and the settings list none; exit 78
        DeadLetterError     the dead-letter queue has no such dead letter, or none that can be put back; exit 1
    AttemptError            an attempt cannot go on, for a reason of the closed list
"""

from training_schemas.progress import FailureReason, Fault


class TrainingWorkerError(Exception):
    """The root of all errors that this package raises on purpose."""


class SettingsError(TrainingWorkerError):
    """The settings are wrong; the message names each setting and what is wrong with it."""


class NoGpuError(TrainingWorkerError):
    """NVML shows no GPU, and the settings list none."""


class BrokerError(TrainingWorkerError):
    """The broker could not be reached in time, or refused."""


class BrokerLostError(BrokerError):
    """The connection or the channel was lost during an operation."""


class JobLockedError(TrainingWorkerError):
    """Another worker holds the lock of the job."""


class DeadLetterError(TrainingWorkerError):
    """The dead-letter queue has no such dead letter, or none that can be put back."""


class AttemptError(TrainingWorkerError):
    """An attempt cannot go on, for a reason of the closed list."""

    def __init__(self, reason: FailureReason, message: str, faults: list[Fault] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.faults = faults or []
