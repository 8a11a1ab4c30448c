"""What the engines can do of all that a job may ask for, and what may be asked for instead."""

from collections.abc import Iterator
from typing import Any

import msgspec

from training_presets.ladder import MOST_ACCUMULATION
from training_presets.tiers import MINIMUM_TIERS
from training_schemas.jobs import EngineName, MemoryTier, ModelFamily, TrainingType
from training_schemas.spec import (
    FluxLoraParameters,
    OptimizerName,
    Quantization,
    SdxlParameters,
    TimestepSampler,
    TrainingParameters,
    WeightDtype,
)

# invoke-training keeps FLUX, its text encoders and its autoencoder on the GPU in 16 bits: 31.4 GiB.
INVOKE_FLUX_TIER = MemoryTier.GB40

# With so many steps invoke-training draws its sample images, whatever is asked for.
INVOKE_INFERENCE_STEPS = {ModelFamily.FLUX: 20, ModelFamily.SDXL: 30}


class Shortcoming(msgspec.Struct, frozen=True):
    """Why an engine has not what a setting asks for.

    ``instead`` is what settings may be changed to, nothing where only a person can decide. What is ``harmless`` may be
    changed against a job's own setting: the result stays the same.
    """

    why: str
    instead: dict[str, Any] = {}
    harmless: bool = False


def planned_engine(training_type: TrainingType, asked: EngineName, gpu_count: int) -> EngineName:
    """The engine that a job is planned for: FLUX, and several GPUs, are the built-in trainer's.

    For SDXL on one GPU the worker chooses.
    """
    if asked is EngineName.AUTO and (training_type.family is ModelFamily.FLUX or gpu_count > 1):
        return EngineName.DIFFUSERS
    return asked


def minimum_tier(engine: EngineName, training_type: TrainingType) -> MemoryTier:
    """The least tier that an engine trains on."""
    if (engine, training_type) == (EngineName.INVOKE, TrainingType.FLUX_LORA):
        return INVOKE_FLUX_TIER
    return MINIMUM_TIERS[training_type]


def shortcomings(
    engine: EngineName,
    training_type: TrainingType,
    parameters: FluxLoraParameters | SdxlParameters,
    gpu_count: int = 1,
) -> dict[str, str]:
    """The settings, by their Python names, that an engine has not, each with why; empty if it can train them.

    ``gpu_count`` is the job's, and among them. ``auto`` is the built-in trainer: what is planned for it, that one can
    train.
    """
    found = {name: one.why for name, one in remedies(engine, training_type, parameters).items()}
    if engine is EngineName.INVOKE and gpu_count > 1:
        found["gpu_count"] = f"engine {engine} trains on one GPU"
    return found


def remedies(
    engine: EngineName, training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters
) -> dict[str, Shortcoming]:
    """Those of the parameters, with what may be done about them."""
    found = dict(_of_all(training_type, parameters))
    if engine is EngineName.INVOKE:
        return dict(_invoke(training_type, parameters)) | found
    return dict(_built_in(training_type, parameters)) | found


def defects(
    engine: EngineName, training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters
) -> list[str]:
    """What an engine does not do right, and no setting can change."""
    return list(_invoke_defects(training_type, parameters)) if engine is EngineName.INVOKE else []


def _invoke_defects(training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters) -> Iterator[str]:
    if training_type is TrainingType.FLUX_LORA:
        yield "invoke-training leaves out the shift of FLUX's autoencoder: it learns from other latents than FLUX draws"
        yield "invoke-training keeps FLUX's adapter in bfloat16, too: the smallest steps are rounded away"
    elif parameters.aspect_ratio_buckets:
        yield "invoke-training gives SDXL the square's size for each image, whatever its bucket"
    if training_type in (TrainingType.FLUX_LORA, TrainingType.SDXL_LORA) and parameters.lora_rank > 1:
        yield f"invoke-training divides an adapter by its rank, {parameters.lora_rank}: at the same rate it learns less"


def _of_all(training_type: TrainingType, parameters: TrainingParameters) -> Iterator[tuple[str, Shortcoming]]:
    if training_type is TrainingType.SDXL_FINETUNE and parameters.quantization is not Quantization.NONE:
        why = "the weights of a full finetune learn, and cannot be quantized"
        yield "quantization", Shortcoming(why, {"quantization": Quantization.NONE})


def _built_in(training_type: TrainingType, parameters: TrainingParameters) -> Iterator[tuple[str, Shortcoming]]:
    if training_type is TrainingType.SDXL_FINETUNE and parameters.weight_dtype is WeightDtype.FLOAT16:
        why = "weights that learn in float16 lose small gradients; bfloat16 or float32"
        yield "weight_dtype", Shortcoming(why, {"weight_dtype": WeightDtype.BFLOAT16})


def _invoke(
    training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters
) -> Iterator[tuple[str, Shortcoming]]:
    yield from _invoke_missing(parameters)
    if isinstance(parameters, FluxLoraParameters):
        yield from _invoke_flux(parameters)
    else:
        yield from _invoke_sdxl(training_type, parameters)
    steps = INVOKE_INFERENCE_STEPS[training_type.family]
    if parameters.validation_prompts and parameters.validation_inference_steps != steps:
        why = f"invoke-training draws in {steps} steps"
        yield "validation_inference_steps", Shortcoming(why, {"validation_inference_steps": steps})


def _invoke_missing(parameters: FluxLoraParameters | SdxlParameters) -> Iterator[tuple[str, Shortcoming]]:
    """What it has for no type of training."""
    if parameters.quantization is not Quantization.NONE:
        why = "invoke-training keeps the base as it is"
        yield "quantization", Shortcoming(why, {"quantization": Quantization.NONE})
    if parameters.optimizer is OptimizerName.ADAFACTOR:
        why = "invoke-training has no adafactor; adamw8bit is the smallest that it has"
        yield "optimizer", Shortcoming(why, {"optimizer": OptimizerName.ADAMW_8BIT})
    if parameters.ema_decay:
        yield "ema_decay", Shortcoming("invoke-training keeps no running mean", {"ema_decay": 0.0})
    if parameters.caption_dropout:
        yield "caption_dropout", Shortcoming("invoke-training leaves out no captions", {"caption_dropout": 0.0})
    if parameters.shuffle_captions:
        why = "invoke-training keeps captions in order, or moves their first part, too"
        yield "shuffle_captions", Shortcoming(why, {"shuffle_captions": False})


def _invoke_flux(parameters: FluxLoraParameters) -> Iterator[tuple[str, Shortcoming]]:
    batch, accumulation = parameters.batch_size, parameters.gradient_accumulation_steps
    if batch > 1:
        why = "invoke-training gives all images of a FLUX batch the noise level of the first"
        shared = {"batch_size": 1, "gradient_accumulation_steps": batch * accumulation}
        possible = batch * accumulation <= MOST_ACCUMULATION
        yield "batch_size", Shortcoming(why, shared if possible else {}, harmless=True)
    if parameters.weight_dtype is not WeightDtype.BFLOAT16:
        why = "invoke-training's FLUX is NaN in float16, and takes 63 GiB in float32; bfloat16"
        yield "weight_dtype", Shortcoming(why, {"weight_dtype": WeightDtype.BFLOAT16})
    if parameters.cache_text_encoder_outputs:
        why = "invoke-training fails when it caches FLUX's captions"
        yield "cache_text_encoder_outputs", Shortcoming(why, {"cache_text_encoder_outputs": False}, harmless=True)
    if parameters.cache_vae_outputs:
        why = "invoke-training caches FLUX's images and does not read them"
        yield "cache_vae_outputs", Shortcoming(why, {"cache_vae_outputs": False}, harmless=True)
    if parameters.train_text_encoder:
        why = "invoke-training fails when it saves FLUX's text encoder"
        yield "train_text_encoder", Shortcoming(why, {"train_text_encoder": False})
    if parameters.masked_loss:
        yield "masked_loss", Shortcoming("invoke-training has no masks for FLUX", {"masked_loss": False})
    if parameters.aspect_ratio_buckets:
        why = "invoke-training makes all of FLUX's images square"
        yield "aspect_ratio_buckets", Shortcoming(why, {"aspect_ratio_buckets": False})
    yield from _invoke_levels(parameters)


def _invoke_levels(parameters: FluxLoraParameters) -> Iterator[tuple[str, Shortcoming]]:
    shift = {"timestep_sampler": TimestepSampler.SHIFT}
    if parameters.timestep_sampler is TimestepSampler.RESOLUTION_SHIFT:
        yield "timestep_sampler", Shortcoming("invoke-training knows no resolutionShift", shift)
    if parameters.timestep_sampler is TimestepSampler.UNIFORM and parameters.validation_prompts:
        why = "invoke-training fails with uniform levels once it has drawn an image; shift"
        yield "timestep_sampler", Shortcoming(why, shift)


def _invoke_sdxl(training_type: TrainingType, parameters: SdxlParameters) -> Iterator[tuple[str, Shortcoming]]:
    finetune = training_type is TrainingType.SDXL_FINETUNE
    if finetune and parameters.weight_dtype is not WeightDtype.FLOAT32:
        why = "invoke-training rounds weights to 16 bits at each step, which is coarser than the step; float32"
        yield "weight_dtype", Shortcoming(why, {"weight_dtype": WeightDtype.FLOAT32})
    elif parameters.weight_dtype is WeightDtype.FLOAT16:
        why = "invoke-training encodes images in weightDtype, and SDXL's autoencoder overflows float16; bfloat16"
        yield "weight_dtype", Shortcoming(why, {"weight_dtype": WeightDtype.BFLOAT16})
    if parameters.random_flip and parameters.cache_vae_outputs:
        why = "invoke-training encodes each image at each step where it flips them"
        yield "cache_vae_outputs", Shortcoming(why, {"cache_vae_outputs": False}, harmless=True)
    if finetune and parameters.train_text_encoder:
        why = "invoke-training finetunes the UNet alone"
        yield "train_text_encoder", Shortcoming(why, {"train_text_encoder": False})
    if parameters.noise_offset:
        yield "noise_offset", Shortcoming("invoke-training has no noise offset", {"noise_offset": 0.0})
    if training_type is TrainingType.SDXL_TEXTUAL_INVERSION and not parameters.initial_token.strip():
        yield "initial_token", Shortcoming("invoke-training begins with what another word means: name it")
