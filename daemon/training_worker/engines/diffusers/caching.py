"""What is computed once before training: the captions' embeddings and the images' latent distributions.

Both are kept in the host's memory, and the models that made them can go.
"""

from collections.abc import Callable, Iterable

import msgspec
import torch
from diffusers import AutoencoderKL, FluxPipeline
from diffusers.image_processor import VaeImageProcessor

from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.data import Example, load_image


class CachedText(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A text as FLUX sees it: ``tokens`` by T5 (length, width) and ``pooled`` by CLIP (width)."""

    tokens: torch.Tensor
    pooled: torch.Tensor


class CachedImage(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The distribution of an image's latents: float32 mean and deviation, each (channels, height / 8, width / 8).

    They are kept instead of one sample, so that each step can draw its own. Both are already in the transformer's
    scale (see `encode_image`).
    """

    mean: torch.Tensor
    std: torch.Tensor


class CachedExample(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An image and its caption, ready for training."""

    image: CachedImage
    text: CachedText


@torch.no_grad()
def cache_texts(
    pipeline: FluxPipeline, texts: Iterable[str], parameters: FluxLoraParameters, check_stop: Callable[[], None]
) -> dict[str, CachedText]:
    """Encode each different text once, cut to the lengths that the parameters allow."""
    pipeline.tokenizer_max_length = parameters.clip_tokenizer_max_length
    cache: dict[str, CachedText] = {}
    for text in texts:
        check_stop()
        if text not in cache:
            tokens, pooled, _ = pipeline.encode_prompt(text, max_sequence_length=parameters.t5_tokenizer_max_length)
            cache[text] = CachedText(tokens=tokens[0].cpu(), pooled=pooled[0].cpu())
    return cache


def cache_images(
    vae: AutoencoderKL, examples: Iterable[Example], resolution: int, check_stop: Callable[[], None]
) -> list[CachedImage]:
    """Encode the images at ``resolution`` pixels a side, one after another."""
    cache = []
    for example in examples:
        check_stop()
        pixels = VaeImageProcessor().preprocess(load_image(example.image, resolution))
        cache.append(encode_image(vae, pixels))
    return cache


@torch.no_grad()
def encode_image(vae: AutoencoderKL, pixels: torch.Tensor) -> CachedImage:
    """Encode one image (1, 3, height, width) in [-1, 1].

    FLUX's transformer works on ``(latents - shift_factor) * scaling_factor``, the inverse of what `FluxPipeline` does
    before it decodes. It is linear, and so is applied to the distribution instead of to every sample.
    """
    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    mean = (distribution.mean.float() - shift) * scale
    std = distribution.std.float() * scale
    return CachedImage(mean=mean[0].cpu(), std=std[0].cpu())


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Turn latents (1, channels, height, width) in the transformer's scale back into pixels around [-1, 1]."""
    unscaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    pixels: torch.Tensor = vae.decode(unscaled).sample
    return pixels
