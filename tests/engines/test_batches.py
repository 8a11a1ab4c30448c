"""What is drawn for training, and how it repeats."""

import msgspec
import pytest
import torch

from training_schemas.spec import FluxLoraParameters, TimestepSampler
from training_worker.engines.diffusers.batches import Batch, BatchSource, fixed_batches, join_batches
from training_worker.engines.diffusers.caching import CachedExample, CachedImage, CachedText
from training_worker.engines.diffusers.noise_levels import draw_sigma, shift_sigma

pytestmark = pytest.mark.trainer


@pytest.fixture
def examples() -> list[CachedExample]:
    """Five images without spread, each full of its own number."""
    return [
        CachedExample(
            image=CachedImage(mean=torch.full((2, 4, 4), float(i)), std=torch.zeros(2, 4, 4)),
            text=CachedText(tokens=torch.full((3, 2), float(i)), pooled=torch.full((2,), float(i))),
        )
        for i in range(5)
    ]


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Give a batch as a mapping, which torch can compare."""
    return msgspec.structs.asdict(batch)


def test_each_pass_sees_every_image_once(examples: list[CachedExample], parameters: FluxLoraParameters) -> None:
    """In another order each time, and with the caption that belongs to it."""
    source = BatchSource(examples, msgspec.structs.replace(parameters, batch_size=5))
    batches = [source.next_batch() for _ in range(4)]
    orders = [batch.latents[:, 0, 0, 0].tolist() for batch in batches]

    assert [[0, 1, 2, 3, 4]] * 4 == [sorted(order) for order in orders]
    assert len({tuple(order) for order in orders}) > 1
    assert orders == [batch.tokens[:, 0, 0].tolist() for batch in batches]


def test_the_size_of_batches_changes_nothing_that_is_drawn(
    examples: list[CachedExample], parameters: FluxLoraParameters
) -> None:
    """So a job that ran out of memory goes on with smaller batches where it stood."""
    whole = BatchSource(examples, msgspec.structs.replace(parameters, batch_size=6)).next_batch()
    single = BatchSource(examples, msgspec.structs.replace(parameters, batch_size=1))

    torch.testing.assert_close(
        tensors(whole), tensors(join_batches([single.next_batch() for _ in range(6)])), rtol=0, atol=0
    )


def test_a_restored_source_goes_on_where_it_stood(
    examples: list[CachedExample], parameters: FluxLoraParameters
) -> None:
    """In the middle of a pass over the data set."""
    source = BatchSource(examples, parameters)
    source.next_batch()
    state = source.state()
    expected = [tensors(source.next_batch()) for _ in range(4)]

    other = BatchSource(examples, msgspec.structs.replace(parameters, seed=99))
    other.restore(state)

    torch.testing.assert_close(expected, [tensors(other.next_batch()) for _ in range(4)], rtol=0, atol=0)


def test_latents_are_drawn_anew_each_time(examples: list[CachedExample], parameters: FluxLoraParameters) -> None:
    """An image is a distribution; its mean alone would teach blur."""
    wide = msgspec.structs.replace(
        examples[0], image=CachedImage(mean=torch.zeros(8, 32, 32), std=torch.ones(8, 32, 32))
    )
    source = BatchSource([wide], msgspec.structs.replace(parameters, batch_size=1))
    first, second = source.next_batch().latents, source.next_batch().latents

    assert not torch.equal(first, second)
    assert pytest.approx(1, abs=0.05) == first.std().item()


def test_fixed_samples_are_the_same_at_every_call(examples: list[CachedExample]) -> None:
    """Four images, each at five noise levels."""
    first, second = ([tensors(batch) for batch in fixed_batches(examples, seed=3)] for _ in range(2))

    assert len(first) == 20
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_shift_moves_levels_towards_noise() -> None:
    """A shift of 3 takes a half to three quarters, and leaves the ends where they are."""
    u = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)

    torch.testing.assert_close(shift_sigma(u, 3.0), torch.tensor([0.0, 0.5, 0.75, 1.0], dtype=torch.float64))
    torch.testing.assert_close(shift_sigma(u, 1.0), u)


@pytest.mark.parametrize(("sampler", "median"), [(TimestepSampler.UNIFORM, 0.5), (TimestepSampler.SHIFT, 0.75)])
def test_levels_are_drawn_as_the_sampler_says(
    parameters: FluxLoraParameters, sampler: TimestepSampler, median: float
) -> None:
    """Half of them lie on either side of the shifted half."""
    settings = msgspec.structs.replace(parameters, timestep_sampler=sampler)
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.stack([draw_sigma(generator, settings) for _ in range(4000)])

    assert pytest.approx(median, abs=0.03) == sigmas.median().item()
    assert (sigmas.min() >= 0) & (sigmas.max() <= 1)
