"""The run's progress: what a trainer reports, one JSON record a line, in ``progress.jsonl`` of its run folder.

The file is append-only and each record is written whole, so that a daemon can stop reading at any byte and resume.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from training_schemas.base import Wire


class Phase(StrEnum):
    """The phases of a run; the first five are preparation."""

    STARTING = "starting"
    CHECKING_DATASET = "checkingDataset"
    CACHING_TEXT = "cachingText"
    CACHING_LATENTS = "cachingLatents"
    LOADING_MODEL = "loadingModel"
    TRAINING = "training"
    CHECKPOINTING = "checkpointing"
    SAMPLING = "sampling"
    EXPORTING = "exporting"


class FailureReason(StrEnum):
    """The reasons why an attempt fails, a closed list: each reason has one policy (see docs/states.md)."""

    DATASET_MISSING = "datasetMissing"
    DATASET_INVALID = "datasetInvalid"
    MODEL_MISSING = "modelMissing"
    MODEL_INVALID = "modelInvalid"
    CONFIG_INVALID = "configInvalid"
    OUTPUT_INVALID = "outputInvalid"
    OUT_OF_MEMORY = "outOfMemory"
    LOSS_NOT_FINITE = "lossNotFinite"
    DISK_FULL = "diskFull"
    TRAINER_CRASHED = "trainerCrashed"
    STALLED = "stalled"
    HOST_UNFIT = "hostUnfit"
    GPU_UNHEALTHY = "gpuUnhealthy"
    WORKER_LOST = "workerLost"
    BUDGET_EXHAUSTED = "budgetExhausted"


class Fault(Wire, frozen=True, kw_only=True):
    """One thing that is wrong: where (a field's path or a file's), and what."""

    path: str
    reason: str


class ProgressRecord(Wire, frozen=True, kw_only=True, tag_field="record"):
    """The fields of all records: a count from 1 without gaps, and the time (unix seconds)."""

    sequence: Annotated[int, Meta(ge=1)]
    time: float


class PhaseRecord(ProgressRecord, frozen=True, kw_only=True, tag="phase"):
    """A phase began; ``total`` items lie ahead in it, where that can be counted."""

    phase: Phase
    total: int | None = None


class DatasetSummary(Wire, frozen=True, kw_only=True):
    """A data set that can be trained on, in numbers.

    Each of ``images`` is in a pass as often as it repeats, which makes ``samples``. ``buckets`` counts the images of
    each size in pixels, as ``1024x768``. ``enlarged`` images are smaller than their bucket, and ``duplicates`` have the
    same bytes as an earlier one. ``captions`` counts the different ones. ``digest`` is the same for data sets that
    train the same: SHA-256, in hex.
    """

    images: int
    samples: int
    buckets: dict[str, int]
    masks: int
    captions: int
    enlarged: int
    duplicates: int
    digest: str


class DatasetRecord(ProgressRecord, frozen=True, kw_only=True, tag="dataset"):
    """The data set was read and checked; ``dataset`` is its summary."""

    summary: DatasetSummary


class StepRecord(ProgressRecord, frozen=True, kw_only=True, tag="step"):
    """An optimizer step was completed: its number from 1, the mean loss of its samples, and its learning rate.

    A loss that is not finite, which JSON cannot express, is null; the daemon then stops the run.
    """

    step: int
    total_steps: int
    loss: float | None
    learning_rate: float


class CheckpointRecord(ProgressRecord, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint folder is complete on disk; a later attempt may resume from it after ``step`` steps."""

    step: int
    path: str


class SampleRecord(ProgressRecord, frozen=True, kw_only=True, tag="sample"):
    """A sample image was drawn with the adapter as it was after ``step`` steps."""

    step: int
    path: str
    prompt: str


class WarningRecord(ProgressRecord, frozen=True, kw_only=True, tag="warning"):
    """A warning that the user should see and that does not stop the run."""

    message: str


class Artifact(Wire, frozen=True, kw_only=True):
    """A file of the result: its path below the attempt's folder, what it is, its bytes and their SHA-256."""

    path: str
    kind: str
    size_bytes: int
    sha256: str


class DoneRecord(ProgressRecord, frozen=True, kw_only=True, tag="done"):
    """The run succeeded. The last record of its file.

    ``first_loss`` and ``last_loss`` are those of the first and the last optimizer step of the whole job, whose noise
    levels differ; ``fixed_loss_before`` and ``fixed_loss_after`` are computed on one fixed set of images, noise and
    noise levels, and can be compared; not every engine has them. ``peak_vram_mib`` is the most memory that the trainer
    held of its GPU.
    """

    steps: int
    first_loss: float
    last_loss: float
    fixed_loss_before: float | None = None
    fixed_loss_after: float | None = None
    artifacts: list[Artifact]
    peak_vram_mib: int | None = None
    versions: dict[str, str] = {}


class StoppedRecord(ProgressRecord, frozen=True, kw_only=True, tag="stopped"):
    """The run stopped before its end because it was asked to, or found itself an orphan. The last record."""

    step: int
    why: str


class FailedRecord(ProgressRecord, frozen=True, kw_only=True, tag="failed"):
    """The run failed for a known reason. The last record."""

    reason: FailureReason
    message: str
    faults: list[Fault] = []


AnyRecord = (
    PhaseRecord
    | DatasetRecord
    | StepRecord
    | CheckpointRecord
    | SampleRecord
    | WarningRecord
    | DoneRecord
    | StoppedRecord
    | FailedRecord
)

_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


def decode_record(line: bytes) -> AnyRecord:
    """Decode one line of a progress file. Raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
    return _decoder.decode(line)
