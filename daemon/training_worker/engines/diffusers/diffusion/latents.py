"""Images as the denoiser sees them: as distributions of latents, made by the autoencoder once or at each step."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import msgspec
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor

from training_worker.engines.common.data.examples import Example
from training_worker.engines.diffusers.cache.keys import content_key
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache
from training_worker.engines.diffusers.data.images import MIDDLE, View, load_mask, load_view, view_of
from training_worker.engines.diffusers.diffusion.device_copies import send


class LatentImage(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The distribution of an image's latents: float32 mean and deviation, each (channels, height / 8, width / 8).

    They are kept instead of one sample, so that each step can draw its own. Both are already in the denoiser's scale
    (see `encode_image`). ``mask`` (1, height / 8, width / 8) is in [0, 1]. ``sizes`` (6) are those of `Batch`.
    """

    mean: torch.Tensor
    std: torch.Tensor
    mask: torch.Tensor
    sizes: torch.Tensor

    def to(self, device: torch.device) -> "LatentImage":
        """Copy it to a device."""
        return LatentImage(**{name: send(getattr(self, name), device) for name in self.__struct_fields__})


class ImageSource(Protocol):
    """Gives images of a data set by their number."""

    def draw(self, index: int, generator: torch.Generator) -> LatentImage:
        """The image as it comes out this time, cropped and mirrored by chance where the job asks for it."""
        ...

    def fixed(self, index: int) -> LatentImage:
        """The image as it is without any chance."""
        ...


class CachedImages:
    """Images that were encoded before training; the autoencoder is gone.

    With ``keep_on``, a device, what was read once stays there: in the end, each image, and its mirror image.
    """

    def __init__(
        self,
        cache: TensorCache,
        examples: Sequence[Example],
        model: str,
        *,
        flips: bool,
        keep_on: torch.device | None = None,
    ) -> None:
        self._cache = cache
        self._examples = examples
        self._model = model
        self._flips = flips
        self._keep_on = keep_on
        self._kept: dict[tuple[int, bool], LatentImage] = {}

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to encode."""
        return all(self._cache.get(self._key(example, view)) is not None for example, view in self._views())

    def encode_all(self, vae: AutoencoderKL, check_stop: Callable[[], None]) -> None:
        """Encode what no earlier run has, one image after another."""
        for example, view in self._views():
            check_stop()
            self._cache.get_or_make(self._key(example, view), partial(encode_view, vae, example, view))

    def draw(self, index: int, generator: torch.Generator) -> LatentImage:
        """The image, mirrored by chance if the job asks for it."""
        return self._get(index, flipped=self._flips and draw_flip(generator))

    def fixed(self, index: int) -> LatentImage:
        """The image as it is."""
        return self._get(index, flipped=False)

    def _views(self) -> Iterator[tuple[Example, View]]:
        for example in self._examples:
            for flipped in (False, True) if self._flips else (False,):
                yield example, view_of(example, flipped=flipped)

    def _get(self, index: int, *, flipped: bool) -> LatentImage:
        if self._keep_on is None:
            return self._read(index, flipped=flipped)
        key = index, flipped
        if key not in self._kept:
            self._kept[key] = self._read(index, flipped=flipped).to(self._keep_on)
        return self._kept[key]

    def _read(self, index: int, *, flipped: bool) -> LatentImage:
        example = self._examples[index]
        view = view_of(example, flipped=flipped)
        tensors = self._cache.get(self._key(example, view))
        if tensors is None:
            raise FileNotFoundError(f"the cache has lost the latents of {example.image}")
        return latent_image(tensors, view)

    def _key(self, example: Example, view: View) -> str:
        return content_key(
            "latents",
            image=example.digest,
            mask=example.mask_digest,
            view=[*view.scaled, view.left, view.top, *view.bucket, view.flipped],
            model=self._model,
        )


class LiveImages:
    """Images that are encoded whenever they are drawn, by an autoencoder that stays in memory."""

    def __init__(self, vae: AutoencoderKL, examples: Sequence[Example], *, crops: bool, flips: bool) -> None:
        self._vae = vae
        self._examples = examples
        self._crops = crops
        self._flips = flips

    def draw(self, index: int, generator: torch.Generator) -> LatentImage:
        """The image, cropped and mirrored by chance if the job asks for it."""
        left, top = torch.rand(2, generator=generator).tolist() if self._crops else (MIDDLE, MIDDLE)
        return self._encode(index, left, top, flipped=self._flips and draw_flip(generator))

    def fixed(self, index: int) -> LatentImage:
        """The image, cropped round its middle."""
        return self._encode(index, MIDDLE, MIDDLE, flipped=False)

    def _encode(self, index: int, left: float, top: float, *, flipped: bool) -> LatentImage:
        example = self._examples[index]
        view = view_of(example, left=left, top=top, flipped=flipped)
        return latent_image(encode_view(self._vae, example, view), view)


def draw_flip(generator: torch.Generator) -> bool:
    """Toss a coin."""
    return bool(torch.rand((), generator=generator) < MIDDLE)


def encode_view(vae: AutoencoderKL, example: Example, view: View) -> dict[str, torch.Tensor]:
    """Encode a view of an image, and its mask, which is averaged over the pixels of each latent."""
    mean, std = encode_image(vae, VaeImageProcessor().preprocess(load_view(example.image, view)))
    if example.mask is None:
        return {"mean": mean, "std": std}
    mask = VaeImageProcessor(do_normalize=False, do_convert_grayscale=True).preprocess(load_mask(example.mask, view))
    return {
        "mean": mean,
        "std": std,
        "mask": torch.nn.functional.adaptive_avg_pool2d(mask, (mean.shape[-2], mean.shape[-1]))[0],
    }


def latent_image(tensors: dict[str, torch.Tensor], view: View) -> LatentImage:
    """What `encode_view` made, with what else is known of it."""
    mean = tensors["mean"]
    mask = tensors.get("mask", torch.ones(1, *mean.shape[-2:]))
    (width, height), (target_width, target_height) = view.original, view.bucket
    sizes = torch.tensor([height, width, view.top, view.left, target_height, target_width], dtype=torch.float32)
    return LatentImage(mean=mean, std=tensors["std"], mask=mask, sizes=sizes)


@torch.no_grad()
def encode_image(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode one image (1, 3, height, width) in [-1, 1] to the mean and the deviation of its latents.

    The denoiser works on ``(latents - shift_factor) * scaling_factor``, the inverse of what a pipeline does before it
    decodes; SDXL has no shift. It is linear, and so is applied to the distribution instead of to every sample.
    """
    # In the type of a weight and to its device: the model's own `dtype` looks through all modules, at each call.
    distribution = vae.encode(pixels.to(next(vae.parameters()))).latent_dist
    scale = vae.config.scaling_factor
    mean = (distribution.mean.float() - _shift(vae)) * scale
    std = distribution.std.float() * scale
    return mean[0].cpu(), std[0].cpu()


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Turn latents (1, channels, height, width) in the denoiser's scale back into pixels around [-1, 1]."""
    unscaled = latents.to(vae.dtype) / vae.config.scaling_factor + _shift(vae)
    pixels: torch.Tensor = vae.decode(unscaled).sample
    return pixels


def _shift(vae: AutoencoderKL) -> float:
    return float(vae.config.shift_factor or 0.0)
