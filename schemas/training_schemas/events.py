"""The events: what the daemons say about jobs and about themselves, as CloudEvents 1.0 in structured JSON mode.

An event's type names its schema and version, ``training.job.progress.v1``. Its routing key on the exchange is
``job.<job id>.<what>`` or ``worker.<worker id>.<what>``. Readers pass over fields that they do not know.
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
from training_schemas.usage import AttemptSummary, Usage

CONTENT_TYPE = "application/cloudevents+json"

# Stands in a routing key for a job whose id could not be read; no valid id starts with it.
NO_JOB = "_"


class Gpu(Wire, frozen=True, kw_only=True):
    """A card: its UUID and name as NVML gives them, memory in MiB, and the tier that this makes.

    Several that train one job together are one of these: ``count`` equal cards, their UUIDs with commas between.
    """

    uuid: str
    name: str
    memory_mib: int
    tier: MemoryTier | None
    count: int = 1


class Event(Wire, frozen=True, kw_only=True):
    """What every event says: which worker speaks, and whether its cards are simulated."""

    TYPE: ClassVar[str]

    worker: str
    simulated: bool

    @property
    def about(self) -> str:
        """The job or worker that the event is about."""
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
    """The job is valid and waits for a card of this tier, or for ``gpu_count`` of them.

    ``changes`` are settings that the planner had to change, ``warnings`` what else to know, and ``predicted`` what the
    job takes on the card that its tier is priced by. ``tiers`` say what it would take on each tier from its own on.
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
    """The message is not a job that can be trained; it lies in the dead queue. Terminal."""

    TYPE = "training.job.rejected.v1"

    faults: list[Fault]


class JobClaimed(JobEvent, frozen=True, kw_only=True):
    """A worker owns the job and starts a trainer; it goes on after ``resume_step`` steps of earlier attempts.

    ``changes`` are the settings that differ from the plan's, for this card's free memory, or since earlier attempts ran
    out of it. ``predicted`` is what the job should take here, where the card is known.
    """

    TYPE = "training.job.claimed.v1"

    training_type: TrainingType
    gpu: Gpu
    engine: str
    resume_step: int
    changes: dict[str, Any] = {}
    predicted: Prediction | None = None


class JobPhase(JobEvent, frozen=True, kw_only=True):
    """The trainer began a phase with ``total`` items ahead, where that can be counted."""

    TYPE = "training.job.phase.v1"

    phase: Phase
    total: int | None = None


class JobDataset(JobEvent, frozen=True, kw_only=True):
    """The data set was read and checked, before anything is on the card."""

    TYPE = "training.job.dataset.v1"

    summary: DatasetSummary


class JobProgress(JobEvent, frozen=True, kw_only=True):
    """An optimizer step was taken. ``seconds_left`` is for training alone, from the rate of the last steps."""

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
    """A picture was drawn with the adapter as it was after ``step`` steps."""

    TYPE = "training.job.sample.v1"

    step: int
    path: str
    prompt: str


class JobWarning(JobEvent, frozen=True, kw_only=True):
    """Something the user should know and that does not stop the job."""

    TYPE = "training.job.warning.v1"

    message: str


class JobRetrying(JobEvent, frozen=True, kw_only=True):
    """The attempt failed, and the job is tried again: on the same card at once, or by whoever takes it after a delay.

    ``counted`` says whether the failure counts to the job's ``maxAttempts``.
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
    """A submission was refused, since its id is that of another job; that job is not touched.

    ``digest`` is the SHA-256 of the refused job's canonical JSON, by which its sender knows it. The message lies in the
    dead queue.
    """

    TYPE = "training.job.refused.v1"

    digest: str


class JobReleased(JobEvent, frozen=True, kw_only=True):
    """The worker gave the job back to its queue; ``step`` is the last checkpoint's, 0 where there is none."""

    TYPE = "training.job.released.v1"

    why: str
    step: int
    usage: Usage


class JobCompleted(JobEvent, frozen=True, kw_only=True):
    """The result lies in ``output_path``; artifacts' paths are relative to it. Terminal.

    ``attempts`` says of each attempt how it ended and what it used, as it does for every end of a job. ``predicted`` is
    what the last attempt was expected to take, beside what was ``measured``.
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
    """The job failed for good and lies in the dead queue. Terminal."""

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


class WorkerOnline(Event, frozen=True, kw_only=True):
    """A worker takes jobs from the queues of these families, up to its cards' tiers.

    ``host`` is the machine's name, ``tiers`` are those of its cards, and ``versions`` those of ``python``, of the
    ``driver`` and of the newest ``cuda`` that it runs, as far as they are known. ``rates`` are those that were measured
    on its cards, the newest first.
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


class Taking(StrEnum):
    """Whether a worker takes jobs."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


class CardState(Wire, frozen=True, kw_only=True):
    """How one card does: memory in MiB, ``utilisation`` in per cent; what it does not tell is left out.

    ``name`` and ``memory_mib`` are as in `Gpu`. ``job`` is what is trained on it now, and ``quarantined`` why it is
    given no jobs.
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
    """A worker lives; the next one follows after ``interval_seconds``. The disk is that of its state.

    It says all that is needed to show the worker, so that whoever begins to listen need not have heard it come. But
    ``rates`` are those alone that were measured since it said them last.
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
    """A worker takes nothing new, and ends once ``jobs``, which it trains, are finished or given back."""

    TYPE = "training.worker.draining.v1"

    why: str
    jobs: list[str] = []


class WorkerQuarantined(Event, frozen=True, kw_only=True):
    """A card (its UUID) is sick and is given no jobs; or it has ``recovered`` from that, and is given jobs again."""

    TYPE = "training.worker.quarantined.v1"

    gpu: str
    reason: str
    recovered: bool = False


class WorkerOffline(Event, frozen=True, kw_only=True):
    """A worker takes no more jobs."""

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
    """An event of a type or version that this reader does not know; a later daemon may send such."""


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
        """The event inside. Raises `UnknownEventError` or `msgspec.ValidationError`."""
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
    """The event's key on the exchange: ``job.<id>.<what>`` or ``worker.<id>.<what>``."""
    _, subject, what, _ = event.TYPE.split(".")
    return f"{subject}.{event.about}.{what}"


def encode_event(envelope: CloudEvent) -> bytes:
    """The message's body."""
    return msgspec.json.encode(envelope)


def decode_event(body: bytes) -> CloudEvent:
    """Read a message's envelope; `CloudEvent.read` gives what is in it."""
    return msgspec.json.decode(body, type=CloudEvent)
