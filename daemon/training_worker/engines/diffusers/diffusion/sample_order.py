"""Which images the samples of a step are of, and how a step is cut into micro-batches and dealt out to processes.

The samples come first and the cut after, so that batches of any size and any number of processes take the same steps.
"""

from collections.abc import Sequence

import msgspec
import torch

# Height and width, or width and height: a micro-batch has images of one shape.
Shape = tuple[int, int]


class Sample(msgspec.Struct, frozen=True):
    """One of the samples of a run: its ``number``, counted from the run's first, and its image."""

    number: int
    image: int


MicroBatch = tuple[Sample, ...]
"""Samples of one shape, in the order of their numbers, that go through the model together."""


class OrderState(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The state of a `SampleOrder`: samples ``drawn``, the state of its generator, the images to come in this pass."""

    drawn: int
    shuffler: torch.Tensor
    order: list[int]


class SampleOrder:
    """Numbers samples without end; each pass sees every image as often as it is listed, in a new order."""

    def __init__(self, images: Sequence[int], seed: int) -> None:
        self._pass = list(images)
        self._shuffler = torch.Generator().manual_seed(seed)
        self._drawn = 0
        self._order: list[int] = []

    def take(self, count: int) -> list[Sample]:
        """The next ``count`` samples."""
        while len(self._order) < count:
            permutation = torch.randperm(len(self._pass), generator=self._shuffler).tolist()
            self._order += [self._pass[place] for place in permutation]
        images, self._order = self._order[:count], self._order[count:]
        first, self._drawn = self._drawn, self._drawn + count
        return [Sample(first + place, image) for place, image in enumerate(images)]

    def peek(self, count: int) -> list[Sample]:
        """The same, which still come next."""
        before = self.state()
        samples = self.take(count)
        self.restore(before)
        return samples

    def state(self) -> OrderState:
        """Return the state of the order, for `restore`."""
        return OrderState(drawn=self._drawn, shuffler=self._shuffler.get_state(), order=list(self._order))

    def restore(self, state: OrderState) -> None:
        """Go on from the state of an order of the same images."""
        self._drawn = state.drawn
        self._shuffler.set_state(state.shuffler)
        self._order = list(state.order)


def cut(samples: Sequence[Sample], shapes: Sequence[Shape], most: int) -> list[MicroBatch]:
    """Put samples of one shape together, ``most`` at a time; ``shapes`` are those of the images by their number."""
    alike: dict[Shape, list[Sample]] = {}
    for sample in samples:
        alike.setdefault(shapes[sample.image], []).append(sample)
    return [tuple(group[start : start + most]) for group in alike.values() for start in range(0, len(group), most)]


def share_of(micro_batches: Sequence[MicroBatch], shapes: Sequence[Shape], rank: int, size: int) -> list[MicroBatch]:
    """The micro-batches of one of ``size`` processes, none where there are too few; all see the same shares.

    The largest is dealt out first, each to whoever has the least so far, by the area of all its images.
    """
    areas = [sum(height * width for height, width in (shapes[one.image] for one in batch)) for batch in micro_batches]
    loads, owners = [0] * size, [0] * len(micro_batches)
    for place in sorted(range(len(micro_batches)), key=lambda place: -areas[place]):
        owners[place] = loads.index(min(loads))
        loads[owners[place]] += areas[place]
    return [batch for batch, owner in zip(micro_batches, owners, strict=True) if owner == rank]
