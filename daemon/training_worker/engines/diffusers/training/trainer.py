"""The training itself: what learns, its optimizer and its batches, one optimizer step at a time."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from training_schemas.progress import FailureReason
from training_schemas.spec import OptimizerName
from training_worker.engines.common.protocol.failures import TrainingFailure, TrainingStopped
from training_worker.engines.diffusers.diffusion.batches import Batch, BatchSource, DrawnBatch
from training_worker.engines.diffusers.diffusion.device_copies import CUDA
from training_worker.engines.diffusers.diffusion.sample_order import MicroBatch
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts, TextSource
from training_worker.engines.diffusers.optim.optimizers import effective_rate, make_optimizer, make_schedule
from training_worker.engines.diffusers.optim.stochastic_rounding import step_with_rounding
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline
from training_worker.engines.diffusers.training.prefetcher import Prefetcher
from training_worker.engines.diffusers.training.process_group import SingleProcess
from training_worker.engines.diffusers.training.worker_processes import LEADER

# A micro-batch, and its texts where encoders do not make them again.
Drawn = tuple[DrawnBatch, Texts | None]


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
        self._prefetcher = Prefetcher(self._draw, self._device)
        # What encodes images at each step needs memory of the device, which the step has.
        self._draws_ahead = self._parameters.cache_vae_outputs

    def step(self, number: int, check_stop: Callable[[], None]) -> float:
        """Take an optimizer step and return the mean loss of its samples.

        ``check_stop`` is called before each of its batches; where it raises, the step is as if it had not begun.

        Raises:
            TrainingFailure: A loss or a gradient is not finite; the weights are still those of the step before.
        """
        before = self.batches.state()
        try:
            summed = self.accumulate(number, check_stop)
        except TrainingStopped:
            self.batches.restore(before)
            raise
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self._parameters.max_grad_norm)
        # All that this process reads from the device: until here it has only queued work there.
        loss, length = torch.stack([summed, norm.to(summed)]).tolist()
        _require_finite(loss, "loss", number)
        _require_finite(length, "gradient", number)
        if self.rounding is None:
            self.optimizer.step()
        else:
            step_with_rounding(self.optimizer, self.rounding)
        self.schedule.step()
        if self.averages is not None:
            self.averages.step(self._weights)
        return float(loss)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return effective_rate(self.optimizer)

    def align(self) -> None:
        """Start, or go on, from the weights of the group's leader."""
        self.group.share(self._weights)

    def accumulate(self, number: int, check_stop: Callable[[], None]) -> torch.Tensor:
        """Set the gradients to those of the mean loss over all samples of a step.

        Returns that loss: float64, without dimensions, on the device, where it may not have been computed yet.
        """
        self.optimizer.zero_grad()
        rank, size = self.group.rank, self.group.size
        drawn = self._prefetcher.take(self.batches.next_step(rank, size))
        if self._draws_ahead and number < self._parameters.max_train_steps:
            self._prefetcher.start(self.batches.following_step(rank, size))
        try:
            loss = self._accumulate_share(drawn, check_stop)
        except TrainingStopped:
            self.group.give_up()
            raise
        self.group.sum_step(self._weights, loss)
        return loss

    def close(self) -> None:
        """Draw no more ahead; what is being drawn is waited for."""
        self._prefetcher.close()

    def _accumulate_share(self, drawn: Iterable[Drawn], check_stop: Callable[[], None]) -> torch.Tensor:
        """The same for those samples of the step that are this process's."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        samples = self._parameters.batch_size * self._parameters.gradient_accumulation_steps
        for batch, texts in drawn:
            check_stop()
            # A micro-batch has as many samples as there are of its shape: each counts alike, whichever it is in.
            loss = self._losses(batch.to(self._device), texts).sum() / samples
            loss.backward()
            total += loss.detach()
        return total

    def _draw(self, samples: MicroBatch) -> Drawn:
        """A micro-batch, with its texts where they are read from a cache."""
        batch = self.batches.draw(samples)
        texts = None if self.pipeline.keeps_encoders else self.texts.embed(batch.captions)
        if self._device.type != CUDA:
            return batch, texts
        return batch.pinned(), texts and texts.pinned()

    @torch.no_grad()
    def fixed_loss(self, number: int, check_stop: Callable[[], None]) -> float:
        """Measure the mean loss after a step, on samples which are the same at every call.

        Raises:
            TrainingFailure: It is not finite.
        """
        losses = []
        for batch in self.batches.fixed_batches():
            check_stop()
            losses.append(self._losses(batch.to(self._device)))
        return _require_finite(torch.cat(losses).double().mean().item(), "fixed loss", number)

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

    def _losses(self, batch: Batch, texts: Texts | None = None) -> torch.Tensor:
        dtype = self.pipeline.loader.dtype
        # Weights that learn are float32 and compute in the type of the base, which halves what they need of memory.
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not torch.float32):
            texts = (texts or self.texts.embed(batch.captions)).to(self._device)
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
