"""Batches for training, with all their randomness: which images, which latents, which noise and how much of it.

Everything is drawn on the CPU from one generator, image by image, so that neither the device nor the size of the
batches changes what a seed gives, and so that a checkpoint can keep the state.
"""

from collections.abc import Iterator, Sequence

import msgspec
import torch

from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.caching import CachedExample
from training_worker.engines.diffusers.noise_levels import draw_sigma

FIXED_IMAGES = 4
FIXED_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Batch(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Samples of one forward pass, float32 where not given otherwise.

    ``latents`` and ``noise`` are (batch, channels, height, width), ``sigmas`` (batch) in [0, 1]; ``tokens`` (batch,
    length, width) and ``pooled`` (batch, width) are in the text encoders' type.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    tokens: torch.Tensor
    pooled: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in msgspec.structs.asdict(self).items()})


class BatchState(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Where a `BatchSource` stands: its generator's state, and the images to come in this pass over the data set."""

    generator: torch.Tensor
    order: list[int]


class BatchSource:
    """Draws batches without end; each pass sees every image once, in a new order."""

    def __init__(self, examples: Sequence[CachedExample], parameters: FluxLoraParameters) -> None:
        self._examples = examples
        self._parameters = parameters
        self._generator = torch.Generator().manual_seed(parameters.seed)
        self._order: list[int] = []

    def next_batch(self) -> Batch:
        """Draw the next ``batch_size`` samples."""
        return join_batches([self._draw() for _ in range(self._parameters.batch_size)])

    def state(self) -> BatchState:
        """Tell where the source stands."""
        return BatchState(generator=self._generator.get_state(), order=list(self._order))

    def restore(self, state: BatchState) -> None:
        """Go on from where a source over the same images stood."""
        self._generator.set_state(state.generator)
        self._order = list(state.order)

    def _draw(self) -> Batch:
        if not self._order:
            self._order = torch.randperm(len(self._examples), generator=self._generator).tolist()
        example = self._examples[self._order.pop(0)]
        return _noised(example, draw_sigma(self._generator, self._parameters), self._generator)


def fixed_batches(examples: Sequence[CachedExample], seed: int) -> Iterator[Batch]:
    """Give the same few samples at every call: the first images, each at every noise level of a grid."""
    generator = torch.Generator().manual_seed(seed)
    for example in examples[:FIXED_IMAGES]:
        for sigma in FIXED_SIGMAS:
            yield _noised(example, torch.tensor(sigma), generator)


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Put batches of equal sizes of image and text together."""
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in Batch.__struct_fields__})


def _noised(example: CachedExample, sigma: torch.Tensor, generator: torch.Generator) -> Batch:
    """Draw one sample's latents and noise: a batch of one."""
    mean, std = example.image.mean, example.image.std
    return Batch(
        latents=(mean + std * torch.randn(mean.shape, generator=generator))[None],
        noise=torch.randn(mean.shape, generator=generator)[None],
        sigmas=sigma[None],
        tokens=example.text.tokens[None],
        pooled=example.text.pooled[None],
    )
