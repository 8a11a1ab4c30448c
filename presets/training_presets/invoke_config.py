"""A plan as invoke-training's configuration: every setting but the paths, nothing left to a default."""

from collections.abc import Mapping
from typing import Any

from training_schemas.jobs import TrainingType
from training_schemas.spec import (
    FluxLoraParameters,
    LoraTargets,
    OptimizerName,
    SdxlParameters,
    TimestepSampler,
    TrainingParameters,
    WeightDtype,
)

Config = dict[str, Any]

# The layers that the built-in trainer's adapters are beside, where a name means all layers that end in it.
FLUX_ATTENTION = (
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
FLUX_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
# The model's own last layer is a `proj_out`, too: those of the single blocks are named one by one.
FLUX_SINGLE_BLOCKS = 38
FLUX_SINGLE = ("proj_mlp", *(f"single_transformer_blocks.{block}.proj_out" for block in range(FLUX_SINGLE_BLOCKS)))
SDXL_ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
SDXL_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

# The sigmoid of a normal variable of this scale is nearly uniform: nowhere do the distributions differ by 0.01.
UNIFORM_SCALE = 1.702

# As in the built-in trainer: what SDXL's layers divide the sides of an image by, and the steps between buckets.
SDXL_DIVISOR = 32
BUCKET_STEP, FINE_STEP, FINE_BELOW = 64, 32, 256
MAX_RATIO = 2

# The type that it computes in, beside weights that learn in float32.
MIXED = {WeightDtype.FLOAT32: "no", WeightDtype.FLOAT16: "fp16", WeightDtype.BFLOAT16: "bf16"}


def invoke_config(
    training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters, upstream: Mapping[str, Any]
) -> Config:
    """A run's configuration of invoke-training, all but ``model``, ``base_output_dir`` and ``data_loader.dataset``.

    ``upstream`` are the job's own settings of that configuration, and come last.
    """
    config = _common(parameters) | {"type": training_type.value, "data_loader": _data_loader(training_type, parameters)}
    if isinstance(parameters, FluxLoraParameters):
        config |= _flux(parameters)
    else:
        config |= _sdxl(parameters)
        match training_type:
            case TrainingType.SDXL_TEXTUAL_INVERSION:
                config |= _inversion(parameters)
            case TrainingType.SDXL_FINETUNE:
                config |= _finetune(parameters)
            case _:
                config |= _sdxl_lora(parameters)
    return _merged(config, upstream)


def sdxl_side(resolution: int) -> int:
    """The side in pixels of SDXL's square images at a resolution."""
    return resolution // SDXL_DIVISOR * SDXL_DIVISOR


def _merged(config: Mapping[str, Any], other: Mapping[str, Any]) -> Config:
    merged = dict(config)
    for name, value in other.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _common(parameters: TrainingParameters) -> Config:
    steps = parameters.max_train_steps
    return {
        "seed": parameters.seed,
        "report_to": "tensorboard",
        "max_train_steps": steps,
        "max_train_epochs": None,
        "save_every_n_steps": parameters.checkpoint_every or steps,
        "save_every_n_epochs": None,
        "validate_every_n_steps": parameters.sample_every or steps,
        "validate_every_n_epochs": None,
        "max_checkpoints": None,
        "optimizer": _optimizer(parameters),
        "lr_scheduler": parameters.lr_scheduler.value,
        "lr_warmup_steps": parameters.lr_warmup_steps,
        "max_grad_norm": parameters.max_grad_norm,
        "train_batch_size": parameters.batch_size,
        "gradient_accumulation_steps": parameters.gradient_accumulation_steps,
        "gradient_checkpointing": parameters.gradient_checkpointing,
        "weight_dtype": parameters.weight_dtype.value,
        "mixed_precision": "no",
        "cache_vae_outputs": parameters.cache_vae_outputs,
        "validation_prompts": list(parameters.validation_prompts),
        "num_validation_images_per_prompt": 1,
        "enable_cpu_offload_during_validation": False,
        "prediction_type": None,
        "use_masks": parameters.masked_loss,
    }


def _optimizer(parameters: TrainingParameters) -> Config:
    settings = {"learning_rate": parameters.learning_rate, "weight_decay": parameters.weight_decay}
    match parameters.optimizer:
        case OptimizerName.PRODIGY:
            own: Config = {"optimizer_type": "Prodigy", "use_bias_correction": True, "safeguard_warmup": True}
        case OptimizerName.ADAMW | OptimizerName.ADAMW_8BIT:
            eight_bit = parameters.optimizer is OptimizerName.ADAMW_8BIT
            own = {"optimizer_type": "AdamW", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "use_8bit": eight_bit}
        case OptimizerName.ADAFACTOR:
            raise ValueError("invoke-training has no adafactor")
    return own | settings


def _data_loader(training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters) -> Config:
    loader: Config = {
        "center_crop": not parameters.random_crop,
        "random_flip": parameters.random_flip,
        "dataloader_num_workers": 0,
        # FLUX's images are square whatever is set here.
        "aspect_ratio_buckets": None,
        "resolution": parameters.resolution,
    }
    # The data set's captions are final already.
    captions: Config = {"caption_prefix": None}
    match training_type:
        case TrainingType.FLUX_LORA:
            return loader | captions | {"type": "IMAGE_CAPTION_FLUX_DATA_LOADER"}
        case TrainingType.SDXL_TEXTUAL_INVERSION:
            # But for the word that is learned: it is put before each.
            captions = {"caption_preset": None, "caption_templates": ["{}"], "keep_original_captions": True}
            kind = {"type": "TEXTUAL_INVERSION_SD_DATA_LOADER", "shuffle_caption_delimiter": None}
        case _:
            kind = {"type": "IMAGE_CAPTION_SD_DATA_LOADER"}
    sizes = {"aspect_ratio_buckets": _buckets(parameters), "resolution": sdxl_side(parameters.resolution)}
    return loader | sizes | captions | kind


def _buckets(parameters: TrainingParameters) -> Config | None:
    """The built-in trainer's: shapes from 1:2 to 2:1 of no more pixels than the square."""
    if not parameters.aspect_ratio_buckets:
        return None
    step = FINE_STEP if parameters.resolution < FINE_BELOW else BUCKET_STEP
    side = parameters.resolution // step * step
    widths = range(step, MAX_RATIO * side + 1, step)
    sizes = [(width, side**2 // width // step * step) for width in widths]
    usual = [width for width, height in sizes if height and max(width, height) <= MAX_RATIO * min(width, height)]
    return {"target_resolution": side, "start_dim": min(usual), "end_dim": max(usual), "divisible_by": step}


def _adapter(parameters: FluxLoraParameters | SdxlParameters) -> Config:
    # One rate for all where prodigy finds it: that of the optimizer.
    shared = parameters.optimizer is OptimizerName.PRODIGY
    return {
        "lora_rank_dim": parameters.lora_rank,
        "train_text_encoder": parameters.train_text_encoder,
        "text_encoder_learning_rate": None if shared else parameters.text_encoder_learning_rate,
        "text_encoder_lora_target_modules": list(CLIP_ATTENTION),
        "cache_text_encoder_outputs": _texts_cached(parameters),
    }


def _texts_cached(parameters: TrainingParameters) -> bool:
    return parameters.cache_text_encoder_outputs and not parameters.train_text_encoder


def _flux(parameters: FluxLoraParameters) -> Config:
    shared = parameters.optimizer is OptimizerName.PRODIGY
    return _adapter(parameters) | {
        "transformer_path": None,
        "text_encoder_1_path": None,
        "text_encoder_2_path": None,
        "lora_checkpoint_format": "invoke_peft",
        "train_transformer": True,
        "transformer_learning_rate": None if shared else parameters.learning_rate,
        "flux_lora_target_modules": list(_flux_layers(parameters.lora_targets)),
        "min_snr_gamma": None,
        "lora_scale": 1.0,
        "guidance_scale": parameters.guidance_scale,
        "clip_tokenizer_max_length": parameters.clip_tokenizer_max_length,
        "t5_tokenizer_max_length": parameters.t5_tokenizer_max_length,
        **_levels(parameters),
    }


def _levels(parameters: FluxLoraParameters) -> Config:
    """How noise levels are drawn: what is called shift there is that of the sigmoid of a normal variable."""
    shift, scale = parameters.discrete_flow_shift, UNIFORM_SCALE
    match parameters.timestep_sampler:
        case TimestepSampler.SHIFT:
            sampler = "shift"
        case TimestepSampler.SIGMOID:
            sampler, shift, scale = "shift", 1.0, 1.0
        case TimestepSampler.UNIFORM:
            sampler = "uniform"
        case TimestepSampler.RESOLUTION_SHIFT:
            raise ValueError("invoke-training has no shift that grows with the resolution")
    return {"timestep_sampler": sampler, "discrete_flow_shift": shift, "sigmoid_scale": scale}


def _flux_layers(targets: LoraTargets) -> tuple[str, ...]:
    match targets:
        case LoraTargets.ATTENTION:
            return FLUX_ATTENTION
        case LoraTargets.ATTENTION_AND_FEED_FORWARD:
            return FLUX_ATTENTION + FLUX_FEED_FORWARD
        case LoraTargets.ALL_LINEAR:
            return FLUX_ATTENTION + FLUX_FEED_FORWARD + FLUX_SINGLE


def _sdxl(parameters: SdxlParameters) -> Config:
    return {
        "hf_variant": None,
        "vae_model": None,
        "min_snr_gamma": parameters.min_snr_gamma or None,
        "xformers": False,
        "negative_validation_prompts": None,
    }


def _sdxl_lora(parameters: SdxlParameters) -> Config:
    shared = parameters.optimizer is OptimizerName.PRODIGY
    layers = SDXL_ATTENTION if parameters.lora_targets is LoraTargets.ATTENTION else SDXL_ATTENTION + SDXL_FEED_FORWARD
    return _adapter(parameters) | {
        "base_embeddings": {},
        "lora_checkpoint_format": "kohya",
        "train_unet": True,
        "unet_learning_rate": None if shared else parameters.learning_rate,
        "unet_lora_target_modules": list(layers),
        "mixed_precision": MIXED[parameters.weight_dtype],
    }


def _inversion(parameters: SdxlParameters) -> Config:
    return {
        "placeholder_token": parameters.trigger_word.strip(),
        "initializer_token": parameters.initial_token.strip(),
        "initial_embedding_file": None,
        "initial_phrase": None,
        "num_vectors": parameters.embedding_vectors,
    }


def _finetune(parameters: SdxlParameters) -> Config:
    return {
        "cache_text_encoder_outputs": _texts_cached(parameters),
        "save_checkpoint_format": "full_diffusers",
        "save_dtype": parameters.weight_dtype.value,
        # The weights learn in float32, which it would compute in.
        "mixed_precision": "bf16",
    }
