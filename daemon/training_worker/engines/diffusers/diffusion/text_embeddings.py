"""Captions as the denoiser sees them: embeddings, made by the text encoders once or at each step."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import msgspec
import torch

from training_worker.engines.diffusers.cache.keys import content_key
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache
from training_worker.engines.diffusers.diffusion.device_copies import pinned, send


class Texts(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Embedded texts: ``tokens`` (batch, length, width) and ``pooled`` (batch, width), in the encoders' type."""

    tokens: torch.Tensor
    pooled: torch.Tensor

    def to(self, device: torch.device) -> "Texts":
        """Copy them to a device."""
        """Copy them to a device, without waiting where their memory is pinned."""
        return Texts(tokens=send(self.tokens, device), pooled=send(self.pooled, device))

    def pinned(self) -> "Texts":
        """The same in memory that a device copies from by itself."""
        return Texts(tokens=pinned(self.tokens), pooled=pinned(self.pooled))


Embed = Callable[[Sequence[str]], Texts]


class TextSource(Protocol):
    """Gives the embeddings of texts: a cache, or a pipeline whose encoders stay, with gradients where they learn."""

    def embed(self, texts: Sequence[str]) -> Texts:
        """Embed a batch of texts."""
        ...


class CachedTexts:
    """Texts that were embedded before training; the encoders are gone.

    With ``keep_on``, a device, what was read once stays there: in the end, each different caption of the data set.
    """

    def __init__(
        self, cache: TensorCache, model: str, lengths: Sequence[int], keep_on: torch.device | None = None
    ) -> None:
        self._cache = cache
        self._model = model
        self._lengths = list(lengths)
        self._keep_on = keep_on
        self._kept: dict[str, Texts] = {}

    def has_all(self, texts: Iterable[str]) -> bool:
        """Whether no text is left to embed."""
        return all(self._cache.get(self._key(text)) is not None for text in dict.fromkeys(texts))

    @torch.no_grad()
    def embed_all(self, texts: Iterable[str], embed: Embed, check_stop: Callable[[], None]) -> None:
        """Embed each different text that no earlier run has, one after another."""
        for text in dict.fromkeys(texts):
            check_stop()
            self._cache.get_or_make(self._key(text), partial(_embed_one, embed, text))

    def embed(self, texts: Sequence[str]) -> Texts:
        """Read a batch of texts, all of them embedded before."""
        found = [self._get(text) for text in texts]
        return Texts(
            tokens=torch.stack([one.tokens for one in found]), pooled=torch.stack([one.pooled for one in found])
        )

    def _get(self, text: str) -> Texts:
        if self._keep_on is None:
            return self._read(text)
        if text not in self._kept:
            self._kept[text] = self._read(text).to(self._keep_on)
        return self._kept[text]

    def _read(self, text: str) -> Texts:
        tensors = self._cache.get(self._key(text))
        if tensors is None:
            raise FileNotFoundError(f"the cache has lost the embedding of {text!r}")
        return Texts(tokens=tensors["tokens"], pooled=tensors["pooled"])

    def _key(self, text: str) -> str:
        return content_key("text", text=text, model=self._model, lengths=self._lengths)


def _embed_one(embed: Embed, text: str) -> dict[str, torch.Tensor]:
    texts = embed([text])
    return {"tokens": texts.tokens[0], "pooled": texts.pooled[0]}
