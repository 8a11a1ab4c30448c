"""The observations that a worker reports to whoever measures it, as frozen records. This module knows no Prometheus.

Times are seconds. ``gpu`` is a GPU's UUID, or those of all of a slot's GPUs, separated by commas.
"""

from collections.abc import Callable
from enum import StrEnum

import msgspec

from training_schemas.events import Gpu, Taking
from training_schemas.jobs import EngineName, MemoryTier, TrainingType
from training_schemas.progress import FailureReason, Phase
from training_schemas.selftest import Verdict
from training_schemas.usage import Usage


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The driver's reading of one GPU now; None is what the GPU does not report.

    Memory is in MiB, clocks in MHz, ``utilisation`` in per cent, ``energy_j`` since the driver was loaded, and
    ``ecc_uncorrected`` counts errors since the last reset. ``processes`` are process ids and what each holds. ``mig``
    are the UUIDs of the instances, where MIG is on. Of a GPU that is ``lost``, or that the driver cannot read because
    of a ``fault``, nothing else is known.
    """

    uuid: str
    lost: bool = False
    fault: str | None = None
    memory_mib: int | None = None
    free_mib: int | None = None
    processes: dict[int, int | None] | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    throttled: list[str] | None = None
    ecc_uncorrected: int | None = None
    mig: list[str] | None = None


class AttemptOutcome(StrEnum):
    """The outcome of an attempt for this worker."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RELEASED = "released"
    RETRIED = "retried"
    SUPERSEDED = "superseded"


class GpuFound(msgspec.Struct, frozen=True, kw_only=True):
    """The worker serves with this GPU, or with these GPUs together."""

    device: Gpu
    simulated: bool


class GpuRead(msgspec.Struct, frozen=True, kw_only=True):
    """The driver was asked about one GPU, which may be one of a slot's; ``xids`` are the Xid errors of it since."""

    reading: Reading
    xids: list[int]


class KernelsTested(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU's self-test in an engine's interpreter is known: the verdict on each kernel by its name."""

    gpu: str
    engine: EngineName
    verdicts: dict[str, Verdict]


class ServingChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A slot consumes jobs from now on, as far as its GPUs' health allows, or it stops doing so."""

    gpu: str
    serves: bool


class JobWaited(msgspec.Struct, frozen=True, kw_only=True):
    """A job was claimed for the first time, this long after it was submitted."""

    training_type: TrainingType
    seconds: float


class AttemptStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A slot owns a job."""

    training_type: TrainingType
    tier: MemoryTier
    gpu: str


class AttemptEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A slot is done with a job; ``reason`` is why its trainer failed, if it did."""

    training_type: TrainingType
    tier: MemoryTier
    gpu: str
    outcome: AttemptOutcome
    reason: FailureReason | None
    usage: Usage


class ProgressMade(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer has recorded something new, at ``time`` by its clock (unix seconds)."""

    gpu: str
    time: float


class PhaseEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A trainer spent this long in a phase, and went on to the next one or ended."""

    training_type: TrainingType
    phase: Phase
    seconds: float


class StepTaken(msgspec.Struct, frozen=True, kw_only=True):
    """An optimizer step ended. ``seconds`` since the one before, if nothing else came in between."""

    training_type: TrainingType
    gpu: str
    loss: float | None
    seconds: float | None


class PredictionChecked(msgspec.Struct, frozen=True, kw_only=True):
    """The ratio of what a completed attempt took to its plan's prediction: 2 is twice as much; None is not known."""

    step_seconds: float | None
    peak_memory: float | None


class LeaseEvent(StrEnum):
    """The events of a lease of a job that this worker owns or owned."""

    RENEWED = "renewed"
    NOT_RENEWED = "notRenewed"
    REJOINED = "rejoined"
    """The job was re-attached after a lost connection, or by a restarted daemon."""
    LOST = "lost"
    """Another worker has the job."""


class LeaseChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened to a lease."""

    event: LeaseEvent


class BrokerChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The connection to the broker was made, or lost."""

    connected: bool


class AdmissionChanged(msgspec.Struct, frozen=True, kw_only=True):
    """From now on the worker admits jobs, or does not."""

    taking: Taking


class DiskUse(StrEnum):
    """The kinds of data that a worker keeps on its disks."""

    RUNS = "runs"
    CACHES = "caches"
    STANDBY = "standby"
    ENDED = "ended"
    """Attempts of jobs that failed or were cancelled here, beside their outputs."""
    OTHER = "other"
    """Everything else in the state directory."""


class DiskMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's disk usage was measured, in bytes by kind."""

    use: dict[DiskUse, int]


class LoopTurned(msgspec.Struct, frozen=True, kw_only=True):
    """The event loop is alive. Reported every second."""


Observation = (
    GpuFound
    | GpuRead
    | KernelsTested
    | ServingChanged
    | JobWaited
    | AttemptStarted
    | AttemptEnded
    | ProgressMade
    | PhaseEnded
    | StepTaken
    | PredictionChecked
    | LeaseChanged
    | BrokerChanged
    | AdmissionChanged
    | DiskMeasured
    | LoopTurned
)
Observer = Callable[[Observation], None]


def unobserved(_: Observation) -> None:
    """Ignore the observation: nobody measures."""
