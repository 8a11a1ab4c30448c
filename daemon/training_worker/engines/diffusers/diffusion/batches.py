"""Batches for training, with all their randomness: which images, which latents, which noise and how much of it.

Everything is drawn on the CPU: the order from one generator, and all else of a sample from one of its own, which its
number seeds. So neither the device, nor the size of the batches, nor how many GPUs share them, nor what was drawn
before changes what a seed gives.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
import torch

from training_schemas.spec import TrainingParameters
from training_worker.engines.diffusers.data.captions import base_caption, joined, parts
from training_worker.engines.diffusers.diffusion.device_copies import pinned, send
from training_worker.engines.diffusers.diffusion.latents import ImageSource, LatentImage
from training_worker.engines.diffusers.diffusion.sample_order import (
    MicroBatch,
    OrderState,
    Sample,
    SampleOrder,
    cut,
    share_of,
)

FIXED_IMAGES = 4
FIXED_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
CAPTIONS = "captions"  # what of a batch is no tensor


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch source knows of an image: its caption in the data set, its shape, and how often it is in a pass."""

    caption: str
    shape: tuple[int, int]
    repeats: int = 1


class Batch(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Samples of one forward pass, float32 where not given otherwise.

    ``latents`` and ``noise`` are (batch, channels, height, width). ``levels`` (batch) are how much noise, in the unit
    of the pipeline that drew them. ``masks`` (batch, 1, height, width) weigh the loss, and are 1 where an image has
    none. ``sizes`` (batch, 6) are those that SDXL is given: height and width of the original, top and left of the crop,
    height and width of the target.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    levels: torch.Tensor
    masks: torch.Tensor
    sizes: torch.Tensor
    captions: list[str]

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device, without waiting where its memory is pinned."""
        return Batch(**_each(lambda tensor: send(tensor, device), self), captions=self.captions)


class DrawnBatch(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What was drawn of a `Batch`, whose latents are ``mean + std * spread``: three tensors of their shape.

    It is on the CPU, but for what an `ImageSource` keeps on the device: there the rest is copied to it, and added up.
    """

    mean: torch.Tensor
    std: torch.Tensor
    spread: torch.Tensor
    noise: torch.Tensor
    levels: torch.Tensor
    masks: torch.Tensor
    sizes: torch.Tensor
    captions: list[str]

    def pinned(self) -> "DrawnBatch":
        """The same in memory that a device copies from by itself."""
        return DrawnBatch(**_each(pinned, self), captions=self.captions)

    def to(self, device: torch.device) -> Batch:
        """Make the batch, on a device."""
        tensors = _each(lambda tensor: send(tensor, device), self)
        mean, std, spread = (tensors.pop(name) for name in ("mean", "std", "spread"))
        return Batch(latents=mean + std * spread, **tensors, captions=self.captions)


B = TypeVar("B", Batch, DrawnBatch)


class Noising(msgspec.Struct, frozen=True, kw_only=True):
    """How a pipeline draws: a sample's level (a scalar) for latents of a shape, its noise, and a level on a grid.

    ``fixed_level`` gives the level at a share of the way from the image to noise.
    """

    draw_level: Callable[[torch.Generator, torch.Size], torch.Tensor]
    draw_noise: Callable[[torch.Generator, torch.Size], torch.Tensor]
    fixed_level: Callable[[float], torch.Tensor]


class BatchSource:
    """Draws the samples of steps without end, each step's in micro-batches of one shape."""

    def __init__(
        self, items: Sequence[Item], images: ImageSource, noising: Noising, parameters: TrainingParameters
    ) -> None:
        self._items = items
        self._shapes = [item.shape for item in items]
        self._images = images
        self._noising = noising
        self._parameters = parameters
        self._step_size = parameters.batch_size * parameters.gradient_accumulation_steps
        listed = [index for index, item in enumerate(items) for _ in range(item.repeats)]
        self._order = SampleOrder(listed, parameters.seed)

    def next_step(self, rank: int = 0, size: int = 1) -> list[MicroBatch]:
        """The micro-batches of the next step that are those of a process among ``size`` of them."""
        return self._share(self._order.take(self._step_size), rank, size)

    def following_step(self, rank: int = 0, size: int = 1) -> list[MicroBatch]:
        """The same, which still come next: for who wants to draw them before their time."""
        return self._share(self._order.peek(self._step_size), rank, size)

    def draw(self, samples: MicroBatch) -> DrawnBatch:
        """Draw a micro-batch; it depends on nothing that was drawn before."""
        return join_batches([self._draw(sample) for sample in samples])

    def fixed_batches(self) -> Iterator[DrawnBatch]:
        """Give the same few samples at every call: the first images, each at every noise level of a grid."""
        generator = torch.Generator().manual_seed(self._parameters.seed)
        for index in range(min(FIXED_IMAGES, len(self._items))):
            for share in FIXED_LEVELS:
                image = self._images.fixed(index)
                caption = base_caption(self._items[index].caption, self._parameters)
                yield self._noised(image, caption, generator, self._noising.fixed_level(share))

    def state(self) -> OrderState:
        """Return the state of the source, for `restore`."""
        return self._order.state()

    def restore(self, state: OrderState) -> None:
        """Go on from the state of a source over the same images."""
        self._order.restore(state)

    def _share(self, samples: Sequence[Sample], rank: int, size: int) -> list[MicroBatch]:
        return share_of(cut(samples, self._shapes, self._parameters.batch_size), self._shapes, rank, size)

    def _draw(self, sample: Sample) -> DrawnBatch:
        generator = torch.Generator().manual_seed(_seed_of(self._parameters.seed, sample.number))
        caption = self._draw_caption(self._items[sample.image].caption, generator)
        image = self._images.draw(sample.image, generator)
        return self._noised(image, caption, generator, None)

    def _draw_caption(self, caption: str, generator: torch.Generator) -> str:
        settings = self._parameters
        if settings.caption_dropout and torch.rand((), generator=generator) < settings.caption_dropout:
            return ""
        if settings.shuffle_captions:
            found = parts(caption, settings.trigger_word)
            caption = joined(found, torch.randperm(len(found.rest), generator=generator).tolist())
        return base_caption(caption, settings)

    def _noised(
        self, image: LatentImage, caption: str, generator: torch.Generator, level: torch.Tensor | None
    ) -> DrawnBatch:
        """Draw one sample's level, if it is not given, its latents and its noise: a batch of one."""
        shape = image.mean.shape
        if level is None:
            level = self._noising.draw_level(generator, shape)
        return DrawnBatch(
            levels=level[None],
            mean=image.mean[None],
            std=image.std[None],
            spread=torch.randn(shape, generator=generator)[None],
            noise=self._noising.draw_noise(generator, shape)[None],
            masks=image.mask[None],
            sizes=image.sizes[None],
            captions=[caption],
        )


def _seed_of(seed: int, number: int) -> int:
    """The seed of a sample. Hashed, for generators with seeds that follow each other begin alike."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big", signed=True)


def join_batches(batches: Sequence[B]) -> B:
    """Put batches of equal sizes of image together."""
    kind = type(batches[0])
    names = [name for name in kind.__struct_fields__ if name != CAPTIONS]
    tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    return kind(**tensors, captions=[caption for batch in batches for caption in batch.captions])


def _each(change: Callable[[torch.Tensor], torch.Tensor], batch: Batch | DrawnBatch) -> dict[str, torch.Tensor]:
    return {name: change(getattr(batch, name)) for name in batch.__struct_fields__ if name != CAPTIONS}
