"""What is drawn for training, and how it repeats."""

import math
from collections import Counter

import msgspec
import pytest
import torch
from msgspec.structs import replace

from training_schemas.spec import FluxLoraParameters, TimestepSampler
from training_worker.engines.diffusers.diffusion.batches import Batch, BatchSource, Item, Noising, join_batches
from training_worker.engines.diffusers.diffusion.latents import LatentImage
from training_worker.engines.diffusers.diffusion.noise_levels import draw_sigma, shift_sigma

pytestmark = pytest.mark.trainer


NOISING = Noising(
    draw_level=lambda generator, _: torch.rand((), generator=generator),
    draw_noise=lambda generator, shape: torch.randn(shape, generator=generator),
    fixed_level=torch.tensor,
)


class NumberedImages:
    """Images without spread, each full of its own number."""

    def __init__(self, shapes: list[tuple[int, int]], std: float = 0.0) -> None:
        self._shapes = shapes
        self._std = std

    def draw(self, index: int, _: torch.Generator) -> LatentImage:
        """The image."""
        return self.fixed(index)

    def fixed(self, index: int) -> LatentImage:
        """The image."""
        height, width = self._shapes[index]
        return LatentImage(
            mean=torch.full((2, height, width), float(index)),
            std=torch.full((2, height, width), self._std),
            mask=torch.ones(1, height, width),
            sizes=torch.zeros(6),
        )


def source_of(
    parameters: FluxLoraParameters, shapes: list[tuple[int, int]] | None = None, repeats: tuple[int, ...] = (1,) * 9
) -> BatchSource:
    """A source over five images, or as many as there are shapes; captions are their numbers."""
    shapes = shapes or [(4, 4)] * 5
    items = [Item(caption=str(i), shape=shape, repeats=repeats[i]) for i, shape in enumerate(shapes)]
    return BatchSource(items, NumberedImages(shapes), NOISING, parameters)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Give a batch as a mapping, which torch can compare."""
    return {name: value for name, value in msgspec.structs.asdict(batch).items() if name != "captions"}


def numbers(batch: Batch) -> list[int]:
    """The images of a batch."""
    return [int(value) for value in batch.latents[:, 0, 0, 0].round().tolist()]


def test_each_pass_sees_every_image_once(parameters: FluxLoraParameters) -> None:
    """In another order each time, and with the caption that belongs to it."""
    source = source_of(replace(parameters, batch_size=5))
    batches = [source.next_batch() for _ in range(4)]
    orders = [numbers(batch) for batch in batches]

    assert [[0, 1, 2, 3, 4]] * 4 == [sorted(order) for order in orders]
    assert len({tuple(order) for order in orders}) > 1
    assert orders == [[int(caption) for caption in batch.captions] for batch in batches]


def test_an_image_that_repeats_is_seen_more_often(parameters: FluxLoraParameters) -> None:
    """As many times in a pass as it says."""
    source = source_of(replace(parameters, batch_size=9), repeats=(1, 3, 1, 1, 3))

    assert [0, 1, 1, 1, 2, 3, 4, 4, 4] == sorted(numbers(source.next_batch()))


def test_a_batch_has_images_of_one_shape_alone(parameters: FluxLoraParameters) -> None:
    """Those that lack others wait for the next pass, so that every batch is full, and none is seen less."""
    shapes = [(4, 4), (4, 6), (4, 4), (4, 6), (4, 4)]
    source = source_of(replace(parameters, batch_size=2), shapes)
    batches = [source.next_batch() for _ in range(50)]

    assert {2} == {len(batch.captions) for batch in batches}
    assert all(len({shapes[number] for number in numbers(batch)}) == 1 for batch in batches)
    seen = Counter(number for batch in batches for number in numbers(batch))
    assert all(19 <= seen[number] <= 21 for number in range(5))


def test_the_size_of_batches_changes_nothing_that_is_drawn(parameters: FluxLoraParameters) -> None:
    """So a job that ran out of memory goes on with smaller batches where it stood."""
    whole = source_of(replace(parameters, batch_size=6)).next_batch()
    single = source_of(replace(parameters, batch_size=1))

    torch.testing.assert_close(
        tensors(whole), tensors(join_batches([single.next_batch() for _ in range(6)])), rtol=0, atol=0
    )


def test_a_restored_source_goes_on_where_it_stood(parameters: FluxLoraParameters) -> None:
    """In the middle of a pass over the data set, with an image that waits for one of its shape."""
    shapes = [(4, 4), (4, 6), (4, 4), (4, 6), (4, 4)]
    source = source_of(parameters, shapes)
    source.next_batch()
    while not (state := source.state()).waiting:
        source.next_batch()
    expected = [tensors(source.next_batch()) for _ in range(4)]

    other = source_of(parameters, shapes)
    other.restore(state)

    torch.testing.assert_close(expected, [tensors(other.next_batch()) for _ in range(4)], rtol=0, atol=0)


def test_a_batch_that_is_left_to_another_changes_nothing_for_the_next(parameters: FluxLoraParameters) -> None:
    """So processes that share a step draw what one alone would."""
    alone, shared = source_of(parameters), source_of(parameters)
    _, expected = alone.next_batch(), alone.next_batch()
    shared.skip_batch()

    torch.testing.assert_close(tensors(expected), tensors(shared.next_batch()), rtol=0, atol=0)


def test_latents_are_drawn_anew_each_time(parameters: FluxLoraParameters) -> None:
    """An image is a distribution; its mean alone would teach blur."""
    images = NumberedImages([(64, 64)], std=1.0)
    items = [Item(caption="", shape=(64, 64))]
    source = BatchSource(items, images, NOISING, replace(parameters, batch_size=1))
    first, second = source.next_batch().latents, source.next_batch().latents

    assert not torch.equal(first, second)
    assert pytest.approx(1, abs=0.05) == first.std().item()


def test_fixed_samples_are_the_same_at_every_call(parameters: FluxLoraParameters) -> None:
    """Four images, each at five noise levels."""
    source = source_of(parameters)
    first, second = ([tensors(batch) for batch in source.fixed_batches()] for _ in range(2))

    assert len(first) == 20
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_captions_are_dropped_as_often_as_the_job_says(parameters: FluxLoraParameters) -> None:
    """Without its caption a sample teaches what the pictures have in common."""
    source = source_of(replace(parameters, batch_size=50, caption_dropout=0.3))
    captions = [caption for _ in range(40) for caption in source.next_batch().captions]

    assert pytest.approx(0.3, abs=0.04) == captions.count("") / len(captions)


def test_captions_are_shuffled_anew_and_keep_their_words(parameters: FluxLoraParameters) -> None:
    """The trigger word stays in front, and the prefix before it."""
    settings = replace(
        parameters, batch_size=30, shuffle_captions=True, trigger_word="rob0t", caption_prefix="photo of"
    )
    items = [Item(caption="rob0t, red, iron, tall", shape=(4, 4))]
    captions = BatchSource(items, NumberedImages([(4, 4)]), NOISING, settings).next_batch().captions

    assert all(caption.startswith("photo of rob0t, ") for caption in captions)
    assert {"iron, red, tall"} == {", ".join(sorted(caption.split(", ")[1:])) for caption in captions}
    assert len(set(captions)) == 6


def test_the_shift_moves_levels_towards_noise() -> None:
    """A shift of 3 takes a half to three quarters, and leaves the ends where they are."""
    u = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)

    torch.testing.assert_close(shift_sigma(u, 3.0), torch.tensor([0.0, 0.5, 0.75, 1.0], dtype=torch.float64))
    torch.testing.assert_close(shift_sigma(u, 1.0), u)


@pytest.mark.parametrize(
    ("sampler", "tokens", "median"),
    [
        (TimestepSampler.UNIFORM, 256, 0.5),
        (TimestepSampler.SHIFT, 256, 0.75),
        (TimestepSampler.SIGMOID, 256, 0.5),
        (TimestepSampler.RESOLUTION_SHIFT, 256, math.exp(0.5) / (1 + math.exp(0.5))),
        (TimestepSampler.RESOLUTION_SHIFT, 4096, math.exp(1.15) / (1 + math.exp(1.15))),
    ],
)
def test_levels_are_drawn_as_the_sampler_says(
    parameters: FluxLoraParameters, sampler: TimestepSampler, tokens: int, median: float
) -> None:
    """Half of them lie on either side of the shifted half."""
    settings = replace(parameters, timestep_sampler=sampler)
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.stack([draw_sigma(generator, tokens, settings) for _ in range(4000)])

    assert pytest.approx(median, abs=0.03) == sigmas.median().item()
    assert (sigmas.min() >= 0) & (sigmas.max() <= 1)


def test_sigmoid_levels_keep_to_the_middle(parameters: FluxLoraParameters) -> None:
    """Two thirds of a normal variable are within one deviation, whose sigmoids are 0.27 and 0.73."""
    settings = replace(parameters, timestep_sampler=TimestepSampler.SIGMOID)
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.stack([draw_sigma(generator, 256, settings) for _ in range(4000)])

    assert pytest.approx(0.683, abs=0.03) == ((sigmas > 0.269) & (sigmas < 0.731)).float().mean().item()
