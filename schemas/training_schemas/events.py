"""The events: what the daemons publish about jobs and about themselves, as CloudEvents 1.0 in structured JSON mode.

An event's type names its schema and version, ``training.job.progress.v1``. Its routing key on the exchange is
``job.<job id>.<what>`` or ``worker.<worker id>.<what>``. Readers ignore fields that they do not know.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from training_schemas.base import Wire
from training_schemas.jobs import MemoryTier, ModelFamily, TrainingType
from training_schemas.plans import Measured, MeasuredRate, Prediction, SettingChange, TierPrediction
from training_schemas.progress import Artifact, DatasetSummary, FailureReason, Fault, Phase
from training_schemas.selftest import Verdict
from training_schemas.usage import AttemptSummary, Usage

CONTENT_TYPE = "application/cloudevents+json"

# Stands in a routing key for a job whose id could not be read; no valid id starts with it.
NO_JOB = "_"


class Gpu(Wire, frozen=True, kw_only=True):
    """A GPU: its UUID and name as NVML gives them, its memory in MiB, and the tier that follows from it.

    Several GPUs that train one job together are one `Gpu`: ``count`` equal ones, their UUIDs separated by commas.
    """

    uuid: str
    name: str
    memory_mib: int
    tier: MemoryTier | None
    count: int = 1


class Event(Wire, frozen=True, kw_only=True):
    """The fields of every event: which worker published it, and whether that worker's GPUs are simulated."""

    TYPE: ClassVar[str]

    worker: str
    simulated: bool

    @property
    def about(self) -> str:
        """Return the id of the job or worker that the event is about."""
        return self.worker


class JobEvent(Event, frozen=True, kw_only=True):
    """An event of a job. ``sequence`` counts from 1 in each attempt; attempt 0 is the time before the first claim."""

    job_id: str
    attempt: Annotated[int, Meta(ge=0)]
    sequence: Annotated[int, Meta(ge=1)]

    @property
    def about(self) -> str:
        return self.job_id


class JobQueued(JobEvent, frozen=True, kw_only=True):
    """The job is valid and waits for a GPU of this tier, or for ``gpu_count`` of them.

    ``changes`` are settings that the planner had to change, ``warnings`` are what else the user should know, and
    ``predicted`` is what the job takes on the GPU that its tier is priced by. ``tiers`` are what it would take on each
    tier from its own on.
    """

    TYPE = "training.job.queued.v1"

    training_type: TrainingType
    tier: MemoryTier
    preset: str
    changes: list[SettingChange] = []
    warnings: list[str] = []
    predicted: Prediction | None = None
    gpu_count: int = 1
    tiers: list[TierPrediction] = []


class JobRejected(JobEvent, frozen=True, kw_only=True):
    """The message is not a job that can be trained; it lies in the dead-letter queue. Terminal."""

    TYPE = "training.job.rejected.v1"

    faults: list[Fault]


class JobClaimed(JobEvent, frozen=True, kw_only=True):
    """A worker owns the job and starts a trainer; it resumes after ``resume_step`` steps of earlier attempts.

    ``changes`` are the settings that differ from the plan's, because of this GPU's free memory, because earlier
    attempts ran out of it, or because others give the same result for less here; ``choices`` say why, one by one, and
    ``gain`` how many times as much the plan as it was would cost on this GPU. ``predicted`` is what the job should take
    here, where the GPU is known.
    """

    TYPE = "training.job.claimed.v1"

    training_type: TrainingType
    gpu: Gpu
    engine: str
    resume_step: int
    changes: dict[str, Any] = {}
    predicted: Prediction | None = None
    choices: list[SettingChange] = []
    gain: float | None = None


class JobPhase(JobEvent, frozen=True, kw_only=True):
    """The trainer began a phase with ``total`` items ahead, where that can be counted."""

    TYPE = "training.job.phase.v1"

    phase: Phase
    total: int | None = None


class JobDataset(JobEvent, frozen=True, kw_only=True):
    """The data set was read and checked, before anything is in GPU memory."""

    TYPE = "training.job.dataset.v1"

    summary: DatasetSummary


class JobProgress(JobEvent, frozen=True, kw_only=True):
    """An optimizer step was completed. ``seconds_left`` is for training alone, from the rate of the last steps."""

    TYPE = "training.job.progress.v1"

    phase: Phase
    step: int
    total_steps: int
    loss: float
    learning_rate: float
    usage: Usage
    steps_per_minute: float | None = None
    seconds_left: float | None = None


class JobCheckpoint(JobEvent, frozen=True, kw_only=True):
    """A checkpoint is complete; a later attempt resumes from it."""

    TYPE = "training.job.checkpoint.v1"

    step: int
    path: str


class JobSample(JobEvent, frozen=True, kw_only=True):
    """A sample image was drawn with the adapter as it was after ``step`` steps."""

    TYPE = "training.job.sample.v1"

    step: int
    path: str
    prompt: str


class JobWarning(JobEvent, frozen=True, kw_only=True):
    """A warning that the user should see and that does not stop the job."""

    TYPE = "training.job.warning.v1"

    message: str


class JobRetrying(JobEvent, frozen=True, kw_only=True):
    """The attempt failed, and the job is retried: on the same GPU at once, or by whoever claims it after a delay.

    ``counted`` states whether the failure counts towards the job's ``maxAttempts``.
    """

    TYPE = "training.job.retrying.v1"

    reason: FailureReason
    message: str
    here: bool
    counted: bool
    delay_seconds: float
    output_tail: list[str] = []
    usage: Usage


class JobDuplicate(JobEvent, frozen=True, kw_only=True):
    """A job that had ended was submitted again: nothing is trained. ``outcome`` is how it ended."""

    TYPE = "training.job.duplicate.v1"

    outcome: Literal["completed", "failed", "cancelled"]
    output_path: str


class JobRefused(JobEvent, frozen=True, kw_only=True):
    """A submission was refused because its id is that of another job; that job is not affected.

    ``digest`` is the SHA-256 of the refused job's canonical JSON, by which its sender recognizes it. The message lies
    in the dead-letter queue.
    """

    TYPE = "training.job.refused.v1"

    digest: str


class JobReleased(JobEvent, frozen=True, kw_only=True):
    """The worker returned the job to its queue; ``step`` is the last checkpoint's, 0 where there is none."""

    TYPE = "training.job.released.v1"

    why: str
    step: int
    usage: Usage


class JobCompleted(JobEvent, frozen=True, kw_only=True):
    """The result lies in ``output_path``; artifacts' paths are relative to it. Terminal.

    ``attempts`` states for each attempt how it ended and what it used, as it does for every end of a job. ``predicted``
    is what the last attempt was expected to take, and ``measured`` what the job took.
    """

    TYPE = "training.job.completed.v1"

    output_path: str
    steps: int
    first_loss: float
    last_loss: float
    fixed_loss_before: float | None = None
    fixed_loss_after: float | None = None
    artifacts: list[Artifact]
    usage: Usage
    attempts: list[AttemptSummary] = []
    predicted: Prediction | None = None
    measured: Measured | None = None


class JobFailed(JobEvent, frozen=True, kw_only=True):
    """The job failed for good and lies in the dead-letter queue. Terminal."""

    TYPE = "training.job.failed.v1"

    reason: FailureReason
    message: str
    faults: list[Fault] = []
    output_tail: list[str] = []
    usage: Usage
    attempts: list[AttemptSummary] = []


class JobCancelled(JobEvent, frozen=True, kw_only=True):
    """The job was cancelled on request after ``step`` steps. Terminal."""

    TYPE = "training.job.cancelled.v1"

    step: int
    usage: Usage
    attempts: list[AttemptSummary] = []


class GpuKernels(Wire, frozen=True, kw_only=True):
    """What a GPU's self-test found in an engine's interpreter.

    ``attention`` are the kernels that trainers use, the fastest first; ``faulty`` what is not right, by its verdict.
    """

    gpu: str
    engine: str
    attention: list[str]
    faulty: dict[str, Verdict] = {}


class WorkerOnline(Event, frozen=True, kw_only=True):
    """A worker consumes jobs from the queues of these families, up to its GPUs' tiers.

    ``host`` is the machine's name, ``tiers`` are those of its GPUs, and ``versions`` those of ``python``, of the
    ``driver`` and of the newest ``cuda`` that it runs, as far as they are known. ``rates`` are those that were measured
    on its GPUs, the newest first. ``kernels`` are of each GPU that has been tested by now; when a test ends after the
    worker came online, it says all of this once more.
    """

    TYPE = "training.worker.online.v1"

    version: str
    gpus: list[Gpu]
    families: list[ModelFamily]
    host: str | None = None
    tiers: list[MemoryTier] = []
    engines: list[str] = []
    versions: dict[str, str] = {}
    rates: list[MeasuredRate] = []
    kernels: list[GpuKernels] = []


class Taking(StrEnum):
    """The states of a worker's admission: whether it consumes jobs."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


class CardState(Wire, frozen=True, kw_only=True):
    """The state of one GPU: memory in MiB, ``utilisation`` in per cent; what the GPU does not report is left out.

    ``name`` and ``memory_mib`` are as in `Gpu`. ``job`` is the job that is trained on it now, and ``quarantined``
    states why it gets no jobs.
    """

    gpu: str
    name: str | None = None
    memory_mib: int | None = None
    job: str | None = None
    quarantined: str | None = None
    free_mib: int | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None


class WorkerHeartbeat(Event, frozen=True, kw_only=True):
    """A worker is alive; its next heartbeat follows after ``interval_seconds``. The disk is that of its state.

    A heartbeat holds all that is needed to show the worker, so that a reader need not have received `WorkerOnline`. But
    ``rates`` are only those that were measured since the last heartbeat.
    """

    TYPE = "training.worker.heartbeat.v1"

    version: str
    interval_seconds: float
    cards: list[CardState]
    disk_free_mib: int | None = None
    engines: list[str] = []
    host: str | None = None
    taking: Taking = Taking.OPEN
    rates: list[MeasuredRate] = []


class WorkerDraining(Event, frozen=True, kw_only=True):
    """A worker consumes nothing new, and exits once ``jobs``, which it trains, are finished or released."""

    TYPE = "training.worker.draining.v1"

    why: str
    jobs: list[str] = []


class WorkerQuarantined(Event, frozen=True, kw_only=True):
    """A GPU (its UUID) is unhealthy and gets no jobs; or it has ``recovered``, and gets jobs again."""

    TYPE = "training.worker.quarantined.v1"

    gpu: str
    reason: str
    recovered: bool = False


class WorkerOffline(Event, frozen=True, kw_only=True):
    """A worker consumes no more jobs."""

    TYPE = "training.worker.offline.v1"

    why: str


EVENTS: dict[str, type[Event]] = {
    kind.TYPE: kind
    for kind in (
        JobQueued,
        JobRejected,
        JobClaimed,
        JobPhase,
        JobDataset,
        JobProgress,
        JobCheckpoint,
        JobSample,
        JobWarning,
        JobReleased,
        JobRetrying,
        JobDuplicate,
        JobRefused,
        JobCompleted,
        JobFailed,
        JobCancelled,
        WorkerOnline,
        WorkerHeartbeat,
        WorkerQuarantined,
        WorkerDraining,
        WorkerOffline,
    )
}
TERMINAL_EVENTS = (JobRejected, JobCompleted, JobFailed, JobCancelled)


class UnknownEventError(ValueError):
    """The event has a type or version that this reader does not know; a later daemon may publish such."""


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope. Names and meanings are those of CloudEvents 1.0; ``subject`` is the job or the worker."""

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: msgspec.Raw
    specversion: Literal["1.0"] = "1.0"
    datacontenttype: str = "application/json"

    def read(self) -> Event:
        """Decode the event inside. Raises `UnknownEventError` or `msgspec.ValidationError`."""
        kind = EVENTS.get(self.type)
        if kind is None:
            raise UnknownEventError(f"cannot read event: unknown type {self.type!r}")
        return msgspec.json.decode(self.data, type=kind)


def wrap(event: Event, *, event_id: str, time: float) -> CloudEvent:
    """Put an event into its envelope; ``time`` in unix seconds. The same id from the same source is the same event."""
    return CloudEvent(
        id=event_id,
        source=f"/training-worker/{event.worker}",
        type=event.TYPE,
        subject=event.about,
        time=datetime.fromtimestamp(time, UTC),
        data=msgspec.Raw(msgspec.json.encode(event)),
    )


def routing_key(event: Event) -> str:
    """Return the event's key on the exchange: ``job.<id>.<what>`` or ``worker.<id>.<what>``."""
    _, subject, what, _ = event.TYPE.split(".")
    return f"{subject}.{event.about}.{what}"


def encode_event(envelope: CloudEvent) -> bytes:
    """Encode the envelope as the message's body."""
    return msgspec.json.encode(envelope)


def decode_event(body: bytes) -> CloudEvent:
    """Decode a message's envelope; `CloudEvent.read` gives the event inside."""
    return msgspec.json.decode(body, type=CloudEvent)
