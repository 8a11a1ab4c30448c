"""The base models, and the counted work of training them."""

from functools import cache
from typing import Any

import msgspec

from training_presets.data import read_data
from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.spec import LoraTargets


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a pipeline, in parameters; ``linear`` are those of linear layers, ``largest_linear`` of the largest."""

    parameters: int
    linear: int = 0
    linear_layers: int = 0
    largest_linear: int = 0
    token_embeddings: int = 0


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is put beside: how many layers, and the parameters for each unit of rank."""

    layers: int
    parameters: int


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A base model, part by part; an adapter for each set of targets."""

    name: str
    latent_channels: int
    text_tokens: int
    guidance_passes: int
    denoiser: Part
    encoders: Part
    vae: Part
    adapters: dict[LoraTargets, Adapter]


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass takes, counted on the real modules: fixed + by unit + by unit and rank + by rank.

    A unit is a token (FLUX) or a position of the latents (SDXL, autoencoders). ``activations`` and ``traffic`` are
    bytes, ``flops`` those of matrix products, ``attention`` FLOP by the square of a sample's units.
    """

    activations: tuple[float, float, float, float]
    traffic: tuple[float, float, float, float]
    flops: tuple[float, float, float, float]
    attention: float
    kernels: float


def amount(quantity: tuple[float, float, float, float], units: float, rank: int) -> float:
    """What a law says of one quantity, for so many units and an adapter of this rank (0 without one)."""
    fixed, by_unit, by_both, by_rank = quantity
    return fixed + units * (by_unit + by_both * rank) + by_rank * rank


@cache
def models() -> dict[ModelFamily, Model]:
    """The base model of each family."""
    return msgspec.convert(read_data("models.toml"), dict[ModelFamily, Model])


@cache
def training_law(kind: TrainingType, targets: LoraTargets, *, checkpointing: bool) -> Law:
    """What a forward and a backward pass take."""
    trained = {
        TrainingType.SDXL_TEXTUAL_INVERSION: "embeddings",
        TrainingType.SDXL_FINETUNE: "unet",
    }.get(kind, targets)
    return _law(_laws()[kind][trained]["checkpointed" if checkpointing else "stored"])


@cache
def inference_law(family: ModelFamily, what: str) -> Law:
    """What a pass without gradients takes: ``sampling`` (the denoiser), ``encoding``, ``decoding`` (the VAE)."""
    return _law(_laws()[family][what])


@cache
def _laws() -> dict[str, Any]:
    return read_data("workloads.toml")


def _law(table: Any) -> Law:
    return msgspec.convert(table, Law)
