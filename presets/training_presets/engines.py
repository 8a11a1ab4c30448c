"""What the engines can do of all that a job may ask for."""

import msgspec

from training_schemas.jobs import EngineName, ModelFamily, TrainingType
from training_schemas.spec import Quantization


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine offers of what a job may choose.

    One that ``scales_losses`` can train weights in float16, whose gradients would be too small for it otherwise.
    """

    quantizations: tuple[Quantization, ...] = tuple(Quantization)
    trains_text_encoders: bool = True
    several_cards: bool = True
    scales_losses: bool = False


# What is not here is not limited. invoke-training keeps FLUX's base in full, and fails when it saves a text encoder.
INVOKE = EngineLimits(several_cards=False, scales_losses=True)
LIMITS = {(EngineName.INVOKE, kind): INVOKE for kind in TrainingType} | {
    (EngineName.INVOKE, TrainingType.FLUX_LORA): msgspec.structs.replace(
        INVOKE, quantizations=(Quantization.NONE,), trains_text_encoders=False
    )
}
UNLIMITED = EngineLimits()


def planned_engine(training_type: TrainingType, asked: EngineName, gpu_count: int) -> EngineName:
    """The engine that a job is planned for: FLUX, and several cards, are the built-in trainer's.

    For SDXL on one card the worker chooses.
    """
    if asked is EngineName.AUTO and (training_type.family is ModelFamily.FLUX or gpu_count > 1):
        return EngineName.DIFFUSERS
    return asked


def limits_of(engine: EngineName, training_type: TrainingType) -> EngineLimits:
    """What an engine offers for a type of training."""
    return LIMITS.get((engine, training_type), UNLIMITED)
