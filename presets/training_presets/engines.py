"""What the engines can do of all that a job may ask for."""

import msgspec

from training_schemas.jobs import EngineName, ModelFamily, TrainingType
from training_schemas.spec import OptimizerName, Quantization


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine offers; one that ``always_caches`` computes captions and latents once, whatever it is told."""

    quantizations: tuple[Quantization, ...] = tuple(Quantization)
    optimizers: tuple[OptimizerName, ...] = tuple(OptimizerName)
    trains_text_encoders: bool = True
    always_caches: bool = False


# What is not here is not known well enough to be limited.
LIMITS = {
    (EngineName.DIFFUSERS, TrainingType.FLUX_LORA): EngineLimits(
        quantizations=(Quantization.NONE, Quantization.INT8, Quantization.NF4),
        optimizers=(OptimizerName.ADAMW, OptimizerName.ADAMW_8BIT),
        trains_text_encoders=False,
        always_caches=True,
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
