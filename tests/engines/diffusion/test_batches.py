"""What is drawn for training, and how it repeats."""

import math

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

MIXED = [(4, 4), (4, 6), (4, 4), (4, 6), (4, 4)]


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


CPU = torch.device("cpu")


def next_batches(source: BatchSource) -> list[Batch]:
    """The micro-batches of the next step."""
    return [source.draw(samples).to(CPU) for samples in source.next_step()]


def next_batch(source: BatchSource) -> Batch:
    """The next step of a source whose images have one shape and whose steps are one micro-batch each."""
    (batch,) = next_batches(source)
    return batch


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Give a batch as a mapping, which torch can compare."""
    return {name: value for name, value in msgspec.structs.asdict(batch).items() if name != "captions"}


def numbers(batch: Batch) -> list[int]:
    """The images of a batch."""
    return [int(value) for value in batch.latents[:, 0, 0, 0].round().tolist()]


def test_each_pass_sees_every_image_once(parameters: FluxLoraParameters) -> None:
    """In another order each time, and with the caption that belongs to it."""
    source = source_of(replace(parameters, batch_size=5))
    batches = [next_batch(source) for _ in range(4)]
    orders = [numbers(batch) for batch in batches]

    assert [[0, 1, 2, 3, 4]] * 4 == [sorted(order) for order in orders]
    assert len({tuple(order) for order in orders}) > 1
    assert orders == [[int(caption) for caption in batch.captions] for batch in batches]


def test_an_image_that_repeats_is_seen_more_often(parameters: FluxLoraParameters) -> None:
    """As many times in a pass as its repeats."""
    source = source_of(replace(parameters, batch_size=9), repeats=(1, 3, 1, 1, 3))

    assert [0, 1, 1, 1, 2, 3, 4, 4, 4] == sorted(numbers(next_batch(source)))


def test_a_batch_has_images_of_one_shape_alone(parameters: FluxLoraParameters) -> None:
    """None waits for others, so that each pass sees all of them, whatever their shapes."""
    source = source_of(replace(parameters, batch_size=2, gradient_accumulation_steps=5), MIXED)
    for _ in range(20):
        steps = [next_batches(source), next_batches(source)]
        drawn = [numbers(batch) for step in steps for batch in step]

        assert {1, 2} >= {len(images) for images in drawn}
        assert all(len({MIXED[image] for image in images}) == 1 for images in drawn)
        assert sorted([0, 1, 2, 3, 4] * 4) == sorted(image for images in drawn for image in images)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_the_size_of_batches_changes_nothing_that_is_drawn(parameters: FluxLoraParameters, batch_size: int) -> None:
    """So a job that ran out of memory goes on with smaller batches where it stood."""

    def draw(most: int) -> list[dict[str, torch.Tensor]]:
        settings = replace(parameters, batch_size=most, gradient_accumulation_steps=6 // most, caption_dropout=0.3)
        source = source_of(settings, MIXED)
        steps = [sample for _ in range(2) for micro_batch in source.next_step() for sample in micro_batch]
        return [tensors(source.draw((sample,)).to(CPU)) for sample in sorted(steps, key=lambda one: one.number)]

    torch.testing.assert_close(draw(6), draw(batch_size), rtol=0, atol=0)


def test_a_micro_batch_is_the_samples_in_it(parameters: FluxLoraParameters) -> None:
    """Each as it would be alone."""
    source = source_of(replace(parameters, batch_size=6))
    (samples,) = source.next_step()
    single = [source.draw((sample,)).to(CPU) for sample in samples]

    torch.testing.assert_close(tensors(source.draw(samples).to(CPU)), tensors(join_batches(single)), rtol=0, atol=0)


def test_a_restored_source_goes_on_where_it_stood(parameters: FluxLoraParameters) -> None:
    """In the middle of a pass over the data set."""
    source = source_of(parameters, MIXED)
    source.next_step()
    state = source.state()
    expected = [tensors(batch) for _ in range(4) for batch in next_batches(source)]

    other = source_of(parameters, MIXED)
    other.restore(state)

    assert state.order
    torch.testing.assert_close(
        expected, [tensors(batch) for _ in range(4) for batch in next_batches(other)], rtol=0, atol=0
    )


def test_who_looks_ahead_changes_nothing(parameters: FluxLoraParameters) -> None:
    """The following step is the next one, also over the end of a pass."""
    source = source_of(parameters, MIXED)
    for _ in range(4):
        ahead = source.following_step()

        assert ahead == source.next_step()


def test_latents_are_drawn_again_each_time(parameters: FluxLoraParameters) -> None:
    """An image is a distribution; its mean alone would teach blur."""
    images = NumberedImages([(64, 64)], std=1.0)
    items = [Item(caption="", shape=(64, 64))]
    source = BatchSource(items, images, NOISING, replace(parameters, batch_size=1))
    first, second = next_batch(source).latents, next_batch(source).latents

    assert not torch.equal(first, second)
    assert pytest.approx(1, abs=0.05) == first.std().item()


def test_fixed_samples_are_the_same_at_every_call(parameters: FluxLoraParameters) -> None:
    """Four images, each at five noise levels."""
    source = source_of(parameters)
    first, second = ([tensors(batch.to(CPU)) for batch in source.fixed_batches()] for _ in range(2))

    assert len(first) == 20
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_captions_are_dropped_as_often_as_the_job_asks(parameters: FluxLoraParameters) -> None:
    """Without its caption a sample teaches what the images have in common."""
    source = source_of(replace(parameters, batch_size=50, caption_dropout=0.3))
    captions = [caption for _ in range(40) for caption in next_batch(source).captions]

    assert pytest.approx(0.3, abs=0.04) == captions.count("") / len(captions)


def test_captions_are_shuffled_each_time_and_keep_their_parts(parameters: FluxLoraParameters) -> None:
    """The trigger word stays in front, and the prefix before it."""
    settings = replace(
        parameters, batch_size=30, shuffle_captions=True, trigger_word="rob0t", caption_prefix="photo of"
    )
    items = [Item(caption="rob0t, red, iron, tall", shape=(4, 4))]
    captions = next_batch(BatchSource(items, NumberedImages([(4, 4)]), NOISING, settings)).captions

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
def test_levels_are_drawn_by_the_sampler_of_the_job(
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
