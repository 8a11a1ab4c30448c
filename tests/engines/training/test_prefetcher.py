"""What is drawn ahead, and that it changes nothing."""

import threading
from collections.abc import Iterator

import pytest
import torch
from msgspec.structs import replace
from tests.engines.trainers import BuildTrainer, never, take_steps

from training_schemas.spec import FluxLoraParameters
from training_worker.engines.common.protocol.failures import TrainingStopped
from training_worker.engines.diffusers.diffusion.sample_order import MicroBatch, Sample
from training_worker.engines.diffusers.training.prefetcher import Prefetcher

pytestmark = pytest.mark.trainer

FIRST: list[MicroBatch] = [(Sample(0, 0),), (Sample(1, 1),)]
SECOND: list[MicroBatch] = [(Sample(2, 0),)]


class Draw:
    """Gives the numbers of samples, and keeps which thread has drawn them."""

    def __init__(self) -> None:
        self.threads: dict[int, str] = {}
        self.failure: Exception | None = None

    def __call__(self, samples: MicroBatch) -> list[int]:
        """Draw them."""
        if self.failure is not None:
            raise self.failure
        self.threads |= {sample.number: threading.current_thread().name for sample in samples}
        return [sample.number for sample in samples]


@pytest.fixture
def draw() -> Draw:
    """What a prefetcher draws with."""
    return Draw()


@pytest.fixture
def prefetcher(draw: Draw) -> Iterator[Prefetcher[list[int]]]:
    """A prefetcher, closed at the end."""
    made = Prefetcher(draw, torch.device("cpu"))
    yield made
    made.close()


def test_a_step_that_was_drawn_ahead_is_taken(draw: Draw, prefetcher: Prefetcher[list[int]]) -> None:
    """It comes from a thread of its own; the first step does not."""
    assert [[0], [1]] == list(prefetcher.take(FIRST))
    prefetcher.start(SECOND)
    assert [[2]] == list(prefetcher.take(SECOND))

    assert draw.threads[0] == draw.threads[1] == threading.current_thread().name
    assert draw.threads[2].startswith("prefetcher")


def test_a_step_that_nobody_foresaw_is_drawn_when_it_is_asked_for(prefetcher: Prefetcher[list[int]]) -> None:
    """As after a stop: one goes back to the step before."""
    prefetcher.start(SECOND)

    assert [[0], [1]] == list(prefetcher.take(FIRST))


def test_what_fails_ahead_fails_in_its_own_step(draw: Draw, prefetcher: Prefetcher[list[int]]) -> None:
    """Not in the one that is computed meanwhile."""
    draw.failure = FileNotFoundError("the cache has lost it")
    prefetcher.start(FIRST)

    with pytest.raises(FileNotFoundError, match="has lost it"):
        prefetcher.take(FIRST)


def test_the_thread_ends(draw: Draw) -> None:
    """Once nobody needs it."""
    before = set(threading.enumerate())
    prefetcher = Prefetcher(draw, torch.device("cpu"))
    prefetcher.start(FIRST)
    prefetcher.start(SECOND)
    assert set(threading.enumerate()) - before
    prefetcher.close()

    assert not set(threading.enumerate()) - before


def test_the_state_is_that_of_the_steps_that_were_taken(build: BuildTrainer, parameters: FluxLoraParameters) -> None:
    """Two samples a step, whatever was drawn ahead; after the last step nothing is."""
    trainer = build(parameters)
    for step in range(1, parameters.max_train_steps + 1):
        assert (step > 1) == (trainer._prefetcher._drawn is not None)
        trainer.step(step, never)

        assert trainer.batches.state().drawn == 2 * step
    assert trainer._prefetcher._drawn is None


def test_images_that_are_encoded_at_each_step_are_not_drawn_ahead(
    build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """The autoencoder's activations would come on top of the step's."""
    trainer = build(replace(parameters, cache_vae_outputs=False))
    take_steps(trainer, 1, 1)

    assert trainer._prefetcher._drawn is None


def test_a_step_that_was_stopped_is_drawn_again(build: BuildTrainer, parameters: FluxLoraParameters) -> None:
    """Though what was drawn ahead is the step after it."""
    plain, stopped = build(parameters), build(parameters)

    def stop() -> None:
        raise TrainingStopped("test")

    take_steps(stopped, 1, 1)
    with pytest.raises(TrainingStopped):
        stopped.step(2, stop)

    assert take_steps(plain, 1, 3)[1:] == take_steps(stopped, 2, 3)
