"""The job: the one message that a backend publishes."""

import hashlib
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from training_schemas.base import JobId, StrictWire, Text

JOB_TYPE = "training.job.submit.v1"


class ModelFamily(StrEnum):
    """Base models; the types of training of one family share their queues."""

    FLUX = "flux"
    SDXL = "sdxl"


class TrainingType(StrEnum):
    """The types of training: what is trained, and on which family of base models."""

    FLUX_LORA = "FLUX_LORA"
    SDXL_LORA = "SDXL_LORA"
    SDXL_TEXTUAL_INVERSION = "SDXL_TEXTUAL_INVERSION"
    SDXL_FINETUNE = "SDXL_FINETUNE"

    @property
    def family(self) -> ModelFamily:
        """Return the family of base models that this type trains."""
        return ModelFamily(self.value.partition("_")[0].lower())


class MemoryTier(StrEnum):
    """A class of GPU memory: what a job needs at least, and what a GPU offers."""

    GB8 = "8gb"
    GB16 = "16gb"
    GB24 = "24gb"
    GB40 = "40gb"
    GB80 = "80gb"

    @property
    def gigabytes(self) -> int:
        """Return the tier's nominal size in GiB, as the vendor advertises the GPU."""
        return int(self.value.removesuffix("gb"))


class CostOptimization(StrEnum):
    """The preset that a job gets if it names none: the cheapest, the usual one, or the one with the best result."""

    AGGRESSIVE = "aggressive"
    BALANCED = "balanced"
    QUALITY = "quality"


class EngineName(StrEnum):
    """The engine that trains the job; ``auto`` leaves the choice to the worker."""

    AUTO = "auto"
    DIFFUSERS = "diffusers"
    INVOKE = "invoke"


GpuCount = Literal[1, 2, 4, 8]
"""The number of GPUs that train one job together."""


class TrainingJob(StrictWire, frozen=True, kw_only=True):
    """A request to train once.

    Only the first four fields are required. Whatever else is left out comes from the preset. Paths are absolute, as the
    GPU hosts see them; memory is a tier's name, money is US dollars. ``gpu_count`` equal GPUs of one host share each
    optimizer step; the memory tier is that of each.
    """

    job_id: JobId
    training_type: TrainingType
    dataset_path: Text
    output_path: Text
    preset: Text | None = None
    model: Text | None = None
    resolution: Annotated[int, Meta(ge=64, le=2048, multiple_of=16)] | None = None
    batch_size: Annotated[int, Meta(ge=1, le=64)] | None = None
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_train_steps: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    lora_rank: Annotated[int, Meta(ge=1, le=256)] | None = None
    gpu_memory_tier: MemoryTier | None = None
    gpu_count: GpuCount = 1
    cost_optimization: CostOptimization | None = None
    config_overrides: dict[str, Any] = {}
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    max_cost_usd: Annotated[float, Meta(gt=0, le=1_000_000)] | None = field(default=None, name="maxCostUSD")
    max_attempts: Annotated[int, Meta(ge=1, le=20)] = 3
    engine: EngineName = EngineName.AUTO
    labels: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=63)], Annotated[str, Meta(max_length=256)]],
        Meta(max_length=32),
    ] = {}


def job_digest(job: TrainingJob) -> str:
    """Return the SHA-256 of the job's canonical JSON: the same id with another digest is another job."""
    return hashlib.sha256(msgspec.json.encode(job, order="deterministic")).hexdigest()
