"""The base models, and the counted work of training them."""

from functools import cache
from typing import Any

import msgspec

from training_presets.data import read_data
from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.spec import LoraTargets

# What is counted: fixed, by unit, by unit and rank, and by rank.
Amounts = tuple[float, float, float, float]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a pipeline, in parameters; ``linear`` are those of linear layers, ``largest_linear`` of the largest.

    ``blocks`` can be checkpointed one by one, each with as much work for a unit; ``attention_bytes`` are what attention
    gave in one of them, by unit. Without blocks, all or nothing is checkpointed.
    """

    parameters: int
    linear: int = 0
    linear_layers: int = 0
    largest_linear: int = 0
    token_embeddings: int = 0
    blocks: int = 0
    attention_bytes: int = 0


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

    activations: Amounts
    traffic: Amounts
    flops: Amounts
    attention: float
    kernels: float


def partly_stored(checkpointed: Law, stored: Law, count: int, blocks: int) -> Law:
    """The law of a pass that keeps the activations of ``count`` blocks, and makes those of the others again."""

    def between(low: float, high: float, share: float = count / blocks) -> float:
        return low + share * (high - low)

    def mixed(low: Amounts, high: Amounts, share: float = count / blocks) -> Amounts:
        fixed, by_unit, by_both, by_rank = (between(*pair, share) for pair in zip(low, high, strict=True))
        return fixed, by_unit, by_both, by_rank

    return Law(
        # While the last block is made again, it needs as much as if it had been kept.
        activations=mixed(checkpointed.activations, stored.activations, min(1.0, count / (blocks - 1))),
        traffic=mixed(checkpointed.traffic, stored.traffic),
        flops=mixed(checkpointed.flops, stored.flops),
        attention=between(checkpointed.attention, stored.attention),
        kernels=between(checkpointed.kernels, stored.kernels),
    )


def amount(quantity: Amounts, units: float, rank: int) -> float:
    """The value of one quantity by a law, for so many units and an adapter of this rank (0 without one)."""
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
def peft_law(targets: LoraTargets, *, float32: bool, checkpointing: bool) -> Law:
    """What a FLUX LoRA took with peft's layers; ``float32`` where what came after a norm stayed in that type."""
    kind = "FLUX_LORA_NF4" if float32 else "FLUX_LORA"
    return _law(read_data("workloads_peft.toml")[kind][targets]["checkpointed" if checkpointing else "stored"])


@cache
def inference_law(family: ModelFamily, what: str) -> Law:
    """What a pass without gradients takes: ``sampling`` (the denoiser), ``encoding``, ``decoding`` (the VAE)."""
    return _law(_laws()[family][what])


@cache
def _laws() -> dict[str, Any]:
    return read_data("workloads.toml")


def _law(table: Any) -> Law:
    return msgspec.convert(table, Law)
