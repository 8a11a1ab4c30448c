"""The next step's batches, drawn while this one computes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from training_worker.engines.diffusers.diffusion.device_copies import CUDA
from training_worker.engines.diffusers.diffusion.sample_order import MicroBatch

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Draws the micro-batches of one step ahead in a thread; ``draw`` must give the same whenever it is called.

    So it has no state that a checkpoint would have to know of: what was drawn ahead is taken if it is what is asked
    for, and forgotten otherwise.
    """

    def __init__(self, draw: Callable[[MicroBatch], T], device: torch.device) -> None:
        self._draw = draw
        self._step: list[MicroBatch] = []
        self._drawn: Future[list[T]] | None = None
        self._thread = ThreadPoolExecutor(1, "prefetcher", _use_gpu, (_card_of(device),))

    def start(self, step: Sequence[MicroBatch]) -> None:
        """Begin to draw a step; what was drawn ahead before and not taken is forgotten."""
        self._forget()
        self._step = list(step)
        self._drawn = self._thread.submit(lambda: [self._draw(samples) for samples in step])

    def take(self, step: Sequence[MicroBatch]) -> Iterator[T]:
        """A step's micro-batches: as they were drawn ahead, or each drawn as it is asked for.

        Raises whatever drawing them has raised.
        """
        drawn, expected = self._drawn, self._step
        if drawn is None or expected != list(step):
            return map(self._draw, step)
        self._drawn = None
        return iter(drawn.result())

    def close(self) -> None:
        """End the thread, once it has drawn what it is drawing."""
        self._forget()
        self._thread.shutdown()

    def _forget(self) -> None:
        if self._drawn is not None:
            self._drawn.cancel()
        self._drawn = None


def _card_of(device: torch.device) -> int | None:
    return torch.cuda.current_device() if device.type == CUDA else None


def _use_gpu(gpu: int | None) -> None:
    """Which of a job's GPUs is the current one is a matter of each thread."""
    if gpu is not None:
        torch.cuda.set_device(gpu)
