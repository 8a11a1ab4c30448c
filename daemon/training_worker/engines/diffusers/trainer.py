"""The training itself: an adapter, its optimizer and its batches, one optimizer step at a time."""

import math
from collections.abc import Callable

import torch
from diffusers import FluxTransformer2DModel

from training_schemas.progress import FailureReason
from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.adapters import add_adapter
from training_worker.engines.diffusers.batches import Batch, BatchSource, fixed_batches
from training_worker.engines.diffusers.caching import CachedExample
from training_worker.engines.diffusers.failures import TrainingFailure, TrainingStopped
from training_worker.engines.diffusers.losses import flow_losses
from training_worker.engines.diffusers.optimizers import make_optimizer


class Trainer:
    """Teaches a new adapter of a transformer at a constant rate."""

    def __init__(
        self, transformer: FluxTransformer2DModel, examples: list[CachedExample], parameters: FluxLoraParameters
    ) -> None:
        self.transformer = transformer
        self.batches = BatchSource(examples, parameters)
        self._examples = examples
        self._parameters = parameters
        self._weights = add_adapter(transformer, parameters.lora_rank, parameters.seed, parameters.lora_targets)
        self.optimizer = make_optimizer(self._weights, parameters)
        if parameters.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()

    def step(self, number: int, check_stop: Callable[[], None]) -> float:
        """Take an optimizer step and return the mean loss of its samples.

        ``check_stop`` is called before each of its batches; where it raises, the step is as if it had not begun.

        Raises:
            TrainingFailure: A loss or a gradient is not finite; the weights are still those of the step before.
        """
        before = self.batches.state()
        try:
            loss = self.accumulate(number, check_stop)
        except TrainingStopped:
            self.batches.restore(before)
            raise
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self._parameters.max_grad_norm)
        _require_finite(norm.item(), "gradient", number)
        self.optimizer.step()
        return loss

    def accumulate(self, number: int, check_stop: Callable[[], None]) -> float:
        """Set the gradients to those of the mean loss over all batches of a step, and return that loss."""
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self._parameters.gradient_accumulation_steps):
            check_stop()
            loss = self._losses(self.batches.next_batch()).mean() / self._parameters.gradient_accumulation_steps
            total += _require_finite(loss.item(), "loss", number)
            loss.backward()  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def fixed_loss(self, number: int, check_stop: Callable[[], None]) -> float:
        """Measure the mean loss after a step, on samples which are the same at every call.

        Raises:
            TrainingFailure: It is not finite.
        """
        losses = []
        for batch in fixed_batches(self._examples, self._parameters.seed):
            check_stop()
            losses.append(self._losses(batch).mean().item())
        return _require_finite(sum(losses) / len(losses), "fixed loss", number)

    def _losses(self, batch: Batch) -> torch.Tensor:
        return flow_losses(self.transformer, batch.to(self.transformer.device), self._parameters.guidance_scale)


def _require_finite(value: float, name: str, step: int) -> float:
    if not math.isfinite(value):
        message = f"cannot go on: the {name} of step {step} is {value}"
        raise TrainingFailure(FailureReason.LOSS_NOT_FINITE, message)
    return value
