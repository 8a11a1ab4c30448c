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


def shared_steps(parameters: AnyParameters, gpu_count: int, *, fixed: set[str]) -> AnyParameters | None:
    """The settings with which several GPUs take as many micro-batches of a step each; None if they are ``fixed``.

    A step sees the same number of images, or as few more as can be, in micro-batches no larger than before.
    """
    batch, accumulation = parameters.batch_size, parameters.gradient_accumulation_steps
    if accumulation % gpu_count == 0:
        return parameters
    if "gradient_accumulation_steps" in fixed:
        return None
    images = batch * accumulation
    sizes = [batch] if "batch_size" in fixed else range(1, batch + 1)
    shares = [(size, -(-images // (size * gpu_count)) * gpu_count) for size in sizes]
    possible = [share for share in shares if share[1] <= MOST_ACCUMULATION]
    size, count = min(possible, key=lambda share: (share[0] * share[1], -share[0]))
    return msgspec.structs.replace(parameters, batch_size=size, gradient_accumulation_steps=count)


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
