"""The ladder: the settings that a job falls back to, step by step, when it runs out of memory."""

from typing import TypeVar

import msgspec

from training_schemas.spec import TrainingParameters

AnyParameters = TypeVar("AnyParameters", bound=TrainingParameters)

# The schema's bound on `gradient_accumulation_steps`.
MOST_ACCUMULATION = 256


def steps_down(parameters: AnyParameters) -> list[AnyParameters]:
    """The settings below ``parameters``, each needing less memory than the one before; maybe none.

    First smaller micro-batches with as much more accumulation, so that an optimizer step sees the same number of
    images; last, gradient checkpointing where it was off.
    """
    steps: list[AnyParameters] = []
    lowest = parameters
    while (smaller := _smaller_batch(lowest)) is not None:
        steps.append(smaller)
        lowest = smaller
    if not parameters.gradient_checkpointing:
        steps.append(msgspec.structs.replace(lowest, gradient_checkpointing=True))
    return steps


def _smaller_batch(parameters: AnyParameters) -> AnyParameters | None:
    batch = parameters.batch_size
    # The least divisor above 1 leaves the largest micro-batch that still divides this one.
    factor = next((number for number in range(2, batch + 1) if batch % number == 0), None)
    if factor is None or parameters.gradient_accumulation_steps * factor > MOST_ACCUMULATION:
        return None
    return msgspec.structs.replace(
        parameters,
        batch_size=batch // factor,
        gradient_accumulation_steps=parameters.gradient_accumulation_steps * factor,
    )
