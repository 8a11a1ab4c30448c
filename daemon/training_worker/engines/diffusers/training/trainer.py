"""The training itself: what learns, its optimizer and its batches, one optimizer step at a time."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from training_schemas.progress import FailureReason
from training_schemas.spec import OptimizerName
from training_worker.engines.common.protocol.failures import TrainingFailure, TrainingStopped
from training_worker.engines.diffusers.diffusion.batches import Batch, BatchSource
from training_worker.engines.diffusers.diffusion.text_embeddings import TextSource
from training_worker.engines.diffusers.optim.optimizers import effective_rate, make_optimizer, make_schedule
from training_worker.engines.diffusers.optim.stochastic_rounding import step_with_rounding
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline
from training_worker.engines.diffusers.training.process_group import SingleProcess
from training_worker.engines.diffusers.training.worker_processes import LEADER


class Trainer:
    """Teaches what of a pipeline learns, by itself or in a group of processes which take the same steps."""

    def __init__(
        self,
        pipeline: TrainingPipeline[Any],
        batches: BatchSource,
        texts: TextSource,
        group: SingleProcess | None = None,
    ) -> None:
        self.group = group or SingleProcess()
        self.pipeline = pipeline
        self.batches = batches
        self.texts = texts
        self._parameters = pipeline.parameters
        self._device = pipeline.loader.device
        groups = pipeline.groups()
        self._weights = [weight for group in groups for weight in group["params"]]
        self.optimizer = make_optimizer(groups, self._parameters)
        self.schedule = make_schedule(self.optimizer, self._parameters)
        decay = self._parameters.ema_decay
        # The leader alone draws with it, and saves it.
        averaged = decay and self.group.rank == LEADER
        self.averages = EMAModel(self._weights, decay=decay) if averaged else None
        self.rounding = self._make_rounding()

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
        if self.rounding is None:
            self.optimizer.step()
        else:
            step_with_rounding(self.optimizer, self.rounding)
        self.schedule.step()
        if self.averages is not None:
            self.averages.step(self._weights)
        return loss

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return effective_rate(self.optimizer)

    def align(self) -> None:
        """Start, or go on, from the weights of the group's leader."""
        self.group.share(self._weights)

    def accumulate(self, number: int, check_stop: Callable[[], None]) -> float:
        """Set the gradients to those of the mean loss over all batches of a step, and return that loss."""
        self.optimizer.zero_grad()
        try:
            share = self._accumulate_share(number, check_stop)
        except TrainingStopped:
            self.group.give_up()
            raise
        loss = _require_finite(self.group.sum_losses(share), "loss", number)
        self.group.sum_gradients(self._weights)
        return loss

    def _accumulate_share(self, number: int, check_stop: Callable[[], None]) -> float:
        """The same for those batches of the step that are this process's."""
        total, batches = 0.0, self._parameters.gradient_accumulation_steps
        for index in range(batches):
            if index % self.group.size != self.group.rank:
                self.batches.skip_batch()
                continue
            check_stop()
            loss = self._losses(self.batches.next_batch()).mean() / batches
            total += _require_finite(loss.item(), "loss", number)
            loss.backward()
        return total

    @torch.no_grad()
    def fixed_loss(self, number: int, check_stop: Callable[[], None]) -> float:
        """Measure the mean loss after a step, on samples which are the same at every call.

        Raises:
            TrainingFailure: It is not finite.
        """
        losses = []
        for batch in self.batches.fixed_batches():
            check_stop()
            losses.append(self._losses(batch).mean().item())
        return _require_finite(sum(losses) / len(losses), "fixed loss", number)

    @contextmanager
    def result_weights(self) -> Iterator[None]:
        """Meanwhile the weights are those of the result: their running mean, where the job asks for one."""
        if self.averages is None:
            yield
            return
        self.averages.store(self._weights)
        self.averages.copy_to(self._weights)
        try:
            yield
        finally:
            self.averages.restore(self._weights)

    def _losses(self, batch: Batch) -> torch.Tensor:
        dtype = self.pipeline.loader.dtype
        # Weights that learn are float32 and compute in the type of the base, which halves what they need of memory.
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not torch.float32):
            texts = self.texts.embed(batch.captions).to(self._device)
            return self.pipeline.losses(batch.to(self._device), texts)

    def _make_rounding(self) -> torch.Generator | None:
        """What rounds weights that learn in 16 bits; Prodigy needs all of them together and goes without."""
        halves = any(weight.dtype is torch.bfloat16 for weight in self._weights)
        if not halves or self._parameters.optimizer is OptimizerName.PRODIGY:
            return None
        return torch.Generator(self._device).manual_seed(self._parameters.seed)


def _require_finite(value: float, name: str, step: int) -> float:
    if not math.isfinite(value):
        message = f"cannot go on: the {name} of step {step} is {value}"
        raise TrainingFailure(FailureReason.LOSS_NOT_FINITE, message)
    return value
