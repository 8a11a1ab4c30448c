"""The families of base models: which classes of diffusers each is made of."""

from typing import Any

import msgspec
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionXLPipeline, UNet2DConditionModel


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """A family of base models. ``denoiser`` is the part that predicts, by its name in a pipeline's folder."""

    pipeline: Any
    denoiser: str
    denoiser_class: Any


FLUX = Family(
    pipeline=FluxPipeline,
    denoiser="transformer",
    denoiser_class=FluxTransformer2DModel,
)
SDXL = Family(
    pipeline=StableDiffusionXLPipeline,
    denoiser="unet",
    denoiser_class=UNet2DConditionModel,
)
