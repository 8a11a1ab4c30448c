"""Making jobs in Python: the names of the wire in snake_case, checked at once."""

from typing import Any, TypedDict, Unpack

import msgspec

from training_schemas.jobs import TrainingJob, TrainingType
from training_schemas.spec import PARAMETERS
from training_schemas.validation import convert_strictly

# The names of the trainer's settings in Python, and on the wire.
SETTINGS = {field.name: field.encode_name for kind in PARAMETERS.values() for field in msgspec.structs.fields(kind)}


class JobFields(TypedDict, total=False):
    """The fields of a job; see `training_schemas.jobs.TrainingJob`."""

    job_id: str
    dataset_path: str
    output_path: str
    preset: str
    model: str
    resolution: int
    batch_size: int
    learning_rate: float
    max_train_steps: int
    lora_rank: int
    gpu_memory_tier: str
    gpu_count: int
    cost_optimization: str
    config_overrides: dict[str, Any]
    priority: int
    max_cost_usd: float
    max_attempts: int
    engine: str
    labels: dict[str, str]


def make_job(training_type: str, **fields: Unpack[JobFields]) -> TrainingJob:
    """Return a valid job. Raises `InvalidMessageError` with the path, as on the wire, of every fault.

    The trainer's settings in ``config_overrides`` may be named in snake_case, too; other names stay as they are.
    """
    names = {field.name: field.encode_name for field in msgspec.structs.fields(TrainingJob)}
    message = {names.get(name, name): value for name, value in fields.items()} | {"trainingType": training_type}
    overrides = message.get("configOverrides")
    if isinstance(overrides, dict):
        message["configOverrides"] = {SETTINGS.get(key, key): value for key, value in overrides.items()}
    return convert_strictly(message, TrainingJob)


def flux_lora_job(**fields: Unpack[JobFields]) -> TrainingJob:
    """Return a FLUX LoRA job. Raises `InvalidMessageError`."""
    return make_job(TrainingType.FLUX_LORA, **fields)


def sdxl_lora_job(**fields: Unpack[JobFields]) -> TrainingJob:
    """Return an SDXL LoRA job. Raises `InvalidMessageError`."""
    return make_job(TrainingType.SDXL_LORA, **fields)
