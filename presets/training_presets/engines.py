"""What the engines can do of all that a job may ask for."""

import msgspec

from training_schemas.jobs import EngineName, ModelFamily, TrainingType
from training_schemas.spec import Quantization


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine offers of what a job may choose."""

    quantizations: tuple[Quantization, ...] = tuple(Quantization)
    trains_text_encoders: bool = True


# What is not here is not limited. invoke-training keeps FLUX's base in full, and fails when it saves a text encoder.
LIMITS = {
    (EngineName.INVOKE, TrainingType.FLUX_LORA): EngineLimits(
        quantizations=(Quantization.NONE,), trains_text_encoders=False
    )
}
UNLIMITED = EngineLimits()


def planned_engine(training_type: TrainingType, asked: EngineName) -> EngineName:
    """The engine that a job is planned for: FLUX is the built-in trainer's, for SDXL the worker chooses."""
    if asked is EngineName.AUTO and training_type.family is ModelFamily.FLUX:
        return EngineName.DIFFUSERS
    return asked


def limits_of(engine: EngineName, training_type: TrainingType) -> EngineLimits:
    """What an engine offers for a type of training."""
    return LIMITS.get((engine, training_type), UNLIMITED)
