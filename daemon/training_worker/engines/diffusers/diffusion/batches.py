"""Batches for training, with all their randomness: which images, which latents, which noise and how much of it.

Everything is drawn on the CPU: the order from one generator, and all else of a sample from one of its own. So neither
the device, nor the size of the batches, nor how many cards share them, changes what a seed gives.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import msgspec
import torch

from training_schemas.spec import TrainingParameters
from training_worker.engines.diffusers.data.captions import base_caption, joined, parts
from training_worker.engines.diffusers.diffusion.latents import ImageSource, LatentImage

FIXED_IMAGES = 4
FIXED_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch source knows of an image: its caption in the data set, its shape, and how often it is in a pass."""

    caption: str
    shape: tuple[int, int]
    repeats: int = 1


class Batch(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Samples of one forward pass, float32 where not given otherwise.

    ``latents`` and ``noise`` are (batch, channels, height, width). ``levels`` (batch) say how much noise, in the unit
    of the pipeline that drew them. ``masks`` (batch, 1, height, width) weigh the loss, and are 1 where an image has
    none. ``sizes`` (batch, 6) are those that SDXL is told: height and width of the original, top and left of the crop,
    height and width of the target.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    levels: torch.Tensor
    masks: torch.Tensor
    sizes: torch.Tensor
    captions: list[str]

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return _each(lambda tensors: tensors[0].to(device), [self])


class Noising(msgspec.Struct, frozen=True, kw_only=True):
    """How a pipeline draws: a sample's level (a scalar) for latents of a shape, its noise, and a level on a grid.

    ``fixed_level`` gives the level at a share of the way from the image to noise.
    """

    draw_level: Callable[[torch.Generator, torch.Size], torch.Tensor]
    draw_noise: Callable[[torch.Generator, torch.Size], torch.Tensor]
    fixed_level: Callable[[float], torch.Tensor]


class BatchState(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Where a `BatchSource` stands: samples ``drawn``, the state of the order, the images to come in this pass.

    Images wait for others of their own shape to fill a batch, in ``waiting`` in the order in which they came.
    """

    drawn: int
    shuffler: torch.Tensor
    order: list[int]
    waiting: list[int]


class BatchSource:
    """Draws batches without end; each pass sees every image as often as it repeats, in a new order.

    The images of a batch are of one shape. One that finds no others in its pass waits for those of the next.
    """

    def __init__(
        self, items: Sequence[Item], images: ImageSource, noising: Noising, parameters: TrainingParameters
    ) -> None:
        self._items = items
        self._images = images
        self._noising = noising
        self._parameters = parameters
        self._drawn = 0
        self._shuffler = torch.Generator().manual_seed(parameters.seed)
        self._pass = [index for index, item in enumerate(items) for _ in range(item.repeats)]
        self._order: list[int] = []
        self._waiting: list[int] = []

    def next_batch(self) -> Batch:
        """Draw the next ``batch_size`` samples."""
        return join_batches([self._draw(index, number) for number, index in self._next_indices()])

    def skip_batch(self) -> None:
        """Leave the next batch to somebody else, as if it had been drawn."""
        self._next_indices()

    def fixed_batches(self) -> Iterator[Batch]:
        """Give the same few samples at every call: the first images, each at every noise level of a grid."""
        generator = torch.Generator().manual_seed(self._parameters.seed)
        for index in range(min(FIXED_IMAGES, len(self._items))):
            for share in FIXED_LEVELS:
                image = self._images.fixed(index)
                caption = base_caption(self._items[index].caption, self._parameters)
                yield self._noised(image, caption, generator, self._noising.fixed_level(share))

    def state(self) -> BatchState:
        """Tell where the source stands."""
        return BatchState(
            drawn=self._drawn,
            shuffler=self._shuffler.get_state(),
            order=list(self._order),
            waiting=list(self._waiting),
        )

    def restore(self, state: BatchState) -> None:
        """Go on from where a source over the same images stood."""
        self._drawn = state.drawn
        self._shuffler.set_state(state.shuffler)
        self._order, self._waiting = list(state.order), list(state.waiting)

    def _next_indices(self) -> list[tuple[int, int]]:
        """The samples of the next batch: the number of each, counted from the first of all, and its image."""
        size = self._parameters.batch_size
        while True:
            if not self._order:
                permutation = torch.randperm(len(self._pass), generator=self._shuffler).tolist()
                self._order = [self._pass[place] for place in permutation]
            self._waiting.append(self._order.pop(0))
            shape = self._items[self._waiting[-1]].shape
            alike = [index for index in self._waiting if self._items[index].shape == shape]
            if len(alike) == size:
                self._waiting = [index for index in self._waiting if self._items[index].shape != shape]
                self._drawn += size
                return list(enumerate(alike, start=self._drawn - size))

    def _draw(self, index: int, number: int) -> Batch:
        generator = torch.Generator().manual_seed(_seed_of(self._parameters.seed, number))
        caption = self._draw_caption(self._items[index].caption, generator)
        image = self._images.draw(index, generator)
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
    ) -> Batch:
        """Draw one sample's level, if it is not given, its latents and its noise: a batch of one."""
        shape = image.mean.shape
        if level is None:
            level = self._noising.draw_level(generator, shape)
        return Batch(
            levels=level[None],
            latents=(image.mean + image.std * torch.randn(shape, generator=generator))[None],
            noise=self._noising.draw_noise(generator, shape)[None],
            masks=image.mask[None],
            sizes=image.sizes[None],
            captions=[caption],
        )


def _seed_of(seed: int, number: int) -> int:
    """The seed of a sample. Hashed, for generators with seeds that follow each other begin alike."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big", signed=True)


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Put batches of equal sizes of image together."""
    return _each(torch.cat, batches)


def _each(change: Callable[[list[torch.Tensor]], torch.Tensor], batches: Sequence[Batch]) -> Batch:
    names = [name for name in Batch.__struct_fields__ if name != "captions"]
    tensors = {name: change([getattr(batch, name) for batch in batches]) for name in names}
    return Batch(**tensors, captions=[caption for batch in batches for caption in batch.captions])
