"""The ladder: the settings that a job falls back to, step by step, when memory is short."""

from typing import TypeVar

import msgspec

from training_schemas.spec import Quantization, TrainingParameters

AnyParameters = TypeVar("AnyParameters", bound=TrainingParameters)

# The schema's bound on `gradient_accumulation_steps`.
MOST_ACCUMULATION = 256


def steps_down(
    parameters: AnyParameters, *, fixed: frozenset[str] = frozenset(), quantizations: tuple[Quantization, ...] = ()
) -> list[AnyParameters]:
    """The settings below ``parameters``, each needing less memory than the one before; maybe none.

    First smaller micro-batches with as much more accumulation, so that an optimizer step sees the same number of
    images; then gradient checkpointing, and caches instead of encoders in memory; last, a base model in fewer bits, as
    far as there are ``quantizations`` for it. What is ``fixed``, by its Python name, is never changed.
    """
    steps: list[AnyParameters] = []
    lowest = parameters
    while "batch_size" not in fixed and (smaller := _smaller_batch(lowest)) is not None:
        steps.append(smaller)
        lowest = smaller
    for change in _changes(lowest, quantizations):
        if fixed.isdisjoint(change):
            lowest = msgspec.structs.replace(lowest, **change)
            steps.append(lowest)
    return steps


def _changes(parameters: TrainingParameters, quantizations: tuple[Quantization, ...]) -> list[dict[str, object]]:
    changes: list[dict[str, object]] = []
    if not parameters.gradient_checkpointing:
        changes.append({"gradient_checkpointing": True})
    if not parameters.cache_text_encoder_outputs and not parameters.train_text_encoder:
        changes.append({"cache_text_encoder_outputs": True})
    if not parameters.cache_vae_outputs:
        changes.append({"cache_vae_outputs": True})
    order = list(Quantization)
    changes += [
        {"quantization": smaller}
        for smaller in quantizations
        if order.index(smaller) > order.index(parameters.quantization)
    ]
    return changes


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
