"""A data set of one sample, made up, for benchmarks of the training alone."""

from collections.abc import Sequence

import torch

from training_worker.engines.diffusers.diffusion.latents import LatentImage
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts


class OneImage:
    """One image of random latents (channels, side, side)."""

    def __init__(self, side: int, channels: int = 16) -> None:
        self._image = LatentImage(
            mean=torch.randn(channels, side, side),
            std=torch.ones(channels, side, side),
            mask=torch.ones(1, side, side),
            sizes=torch.zeros(6),
        )

    def draw(self, _index: int, _generator: torch.Generator) -> LatentImage:
        """The image."""
        return self._image

    def fixed(self, _index: int) -> LatentImage:
        """The image."""
        return self._image


class OneText:
    """One text for all: tokens (length, width) and what is pooled (pooled)."""

    def __init__(self, length: int, width: int, pooled: int, dtype: torch.dtype) -> None:
        self._one = Texts(tokens=torch.ones(1, length, width, dtype=dtype), pooled=torch.ones(1, pooled, dtype=dtype))

    def embed(self, texts: Sequence[str]) -> Texts:
        """Embed them all alike."""
        repeats = len(texts)
        return Texts(tokens=self._one.tokens.repeat(repeats, 1, 1), pooled=self._one.pooled.repeat(repeats, 1))
