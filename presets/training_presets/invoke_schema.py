"""The settings of invoke-training that a job may give: they are checked before the job waits for a GPU.

Their names and types are in ``invoke_schema.json``, which ``scripts/write_invoke_schema.py`` reads from
invoke-training's own models. What the worker sets itself, and what one of a job's own settings means, may not be given.
"""

import functools
import operator
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from training_schemas.base import StrictWire
from training_schemas.jobs import TrainingType
from training_schemas.progress import Fault
from training_schemas.spec import PARAMETERS, FluxLoraParameters, OptimizerName, SdxlParameters
from training_schemas.validation import InvalidMessageError, convert_strictly

ADAM, PRODIGY = "AdamOptimizerConfig", "ProdigyOptimizerConfig"
OPTIMIZERS = {
    OptimizerName.ADAMW: (ADAM,),
    OptimizerName.ADAMW_8BIT: (ADAM,),
    OptimizerName.PRODIGY: (PRODIGY,),
}

NEGATIVE = "negative_validation_prompts"

FILES = "the worker decides which files are read and written"
STEPS = "the worker decides when something is saved or drawn"
CAPTIONS = "the worker writes the captions"
REFUSED = {
    "type": "the job's trainingType sets it",
    "model": "the job's model sets it",
    "base_output_dir": FILES,
    "report_to": "the worker reports",
    "hf_variant": FILES,
    "vae_model": FILES,
    "base_embeddings": FILES,
    "transformer_path": FILES,
    "text_encoder_1_path": FILES,
    "text_encoder_2_path": FILES,
    "initial_embedding_file": FILES,
    "lora_checkpoint_format": "the worker converts one format alone",
    "save_checkpoint_format": "the worker keeps whole pipelines",
    "train_transformer": "the job's trainingType sets it",
    "train_unet": "the job's trainingType sets it",
    "max_train_epochs": "runs are counted in steps",
    "save_every_n_epochs": STEPS,
    "save_every_n_steps": STEPS,
    "validate_every_n_epochs": STEPS,
    "validate_every_n_steps": STEPS,
    "max_checkpoints": STEPS,
    "num_validation_images_per_prompt": "one image of each prompt is kept",
    "data_loader.type": "the job's trainingType sets it",
    "data_loader.dataset": FILES,
    "data_loader.caption_prefix": CAPTIONS,
    "data_loader.caption_preset": CAPTIONS,
    "data_loader.caption_templates": CAPTIONS,
    "data_loader.keep_original_captions": CAPTIONS,
    "initial_phrase": "initialToken sets what it begins as",
}
"""The settings that a job may never give, and why."""

SETTINGS = {
    "seed": "seed",
    "max_train_steps": "maxTrainSteps",
    "train_batch_size": "batchSize",
    "gradient_accumulation_steps": "gradientAccumulationSteps",
    "gradient_checkpointing": "gradientCheckpointing",
    "weight_dtype": "weightDtype",
    "save_dtype": "weightDtype",
    "cache_text_encoder_outputs": "cacheTextEncoderOutputs",
    "cache_vae_outputs": "cacheVaeOutputs",
    "max_grad_norm": "maxGradNorm",
    "lr_scheduler": "lrScheduler",
    "lr_warmup_steps": "lrWarmupSteps",
    "validation_prompts": "validationPrompts",
    "use_masks": "maskedLoss",
    "train_text_encoder": "trainTextEncoder",
    "text_encoder_learning_rate": "textEncoderLearningRate",
    "transformer_learning_rate": "learningRate",
    "unet_learning_rate": "learningRate",
    "lora_rank_dim": "loraRank",
    "flux_lora_target_modules": "loraTargets",
    "unet_lora_target_modules": "loraTargets",
    "min_snr_gamma": "minSnrGamma",
    "timestep_sampler": "timestepSampler",
    "discrete_flow_shift": "discreteFlowShift",
    "guidance_scale": "guidanceScale",
    "clip_tokenizer_max_length": "clipTokenizerMaxLength",
    "t5_tokenizer_max_length": "t5TokenizerMaxLength",
    "placeholder_token": "triggerWord",
    "initializer_token": "initialToken",
    "num_vectors": "embeddingVectors",
    "optimizer.optimizer_type": "optimizer",
    "optimizer.use_8bit": "optimizer",
    "optimizer.learning_rate": "learningRate",
    "optimizer.weight_decay": "weightDecay",
    "data_loader.resolution": "resolution",
    "data_loader.aspect_ratio_buckets": "aspectRatioBuckets",
    "data_loader.center_crop": "randomCrop",
    "data_loader.random_flip": "randomFlip",
}
"""The settings that one of a job's own settings decides already, and which one."""

PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "null": None}


class Field(msgspec.Struct, frozen=True):
    """One of invoke-training's settings; without a default it must be given."""

    kinds: list[Any]
    default: Any = msgspec.UNSET


class Schema(msgspec.Struct, frozen=True):
    """All of them, by the names of invoke-training's models, at a commit; ``types`` names the model of each type."""

    commit: str | None
    types: dict[TrainingType, str]
    objects: dict[str, dict[str, Field]]


@cache
def schema() -> Schema:
    """The project's copy."""
    return msgspec.json.decode(Path(__file__).with_name("invoke_schema.json").read_bytes(), type=Schema)


def is_upstream(training_type: TrainingType, name: str) -> bool:
    """Whether a setting of that name is invoke-training's, given by the job or not."""
    return name in schema().objects[schema().types[training_type]]


def upstream_faults(
    training_type: TrainingType,
    overrides: Mapping[str, Any],
    parameters: FluxLoraParameters | SdxlParameters | None = None,
) -> list[Fault]:
    """All that is wrong with a job's settings of invoke-training, by path below ``configOverrides``.

    Which settings its optimizer has, and how many negative prompts are wanted, is known where there are ``parameters``.
    """
    refused = {path: why for path in _paths(overrides) if (why := _refusal(training_type, path)) is not None}
    faults = dict(refused)
    left = _without(overrides, refused)
    optimizers = (ADAM, PRODIGY) if parameters is None else OPTIMIZERS.get(parameters.optimizer, (ADAM, PRODIGY))
    try:
        convert_strictly(left, _settings_type((schema().types[training_type],), optimizers))
    except InvalidMessageError as error:
        faults |= {fault.path: fault.reason for fault in error.faults}
    negative = left.get(NEGATIVE)
    if parameters is not None and isinstance(negative, list) and len(negative) != len(parameters.validation_prompts):
        faults.setdefault(NEGATIVE, "one for each of validationPrompts, or none")
    return [Fault(path=f"configOverrides.{path}", reason=why) for path, why in faults.items()]


def _paths(overrides: Mapping[str, Any]) -> list[str]:
    nested = {name: value for name, value in overrides.items() if isinstance(value, dict)}
    return [*overrides, *(f"{name}.{key}" for name, value in nested.items() for key in value)]


def _refusal(training_type: TrainingType, path: str) -> str | None:
    if not is_upstream(training_type, path.partition(".")[0]):
        return None
    if path not in SETTINGS:
        return REFUSED.get(path)
    own = SETTINGS[path] in PARAMETERS[training_type.family].__struct_encode_fields__
    return f"{SETTINGS[path]} sets it" if own else "it would change nothing"


def _without(overrides: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """The overrides without some paths, whose names are of one or two parts."""
    left: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in paths:
            inner = isinstance(value, dict)
            left[name] = {key: one for key, one in value.items() if f"{name}.{key}" not in paths} if inner else value
    return left


@cache
def _settings_type(models: tuple[str, ...], optimizers: tuple[str, ...] = ()) -> type[StrictWire]:
    """A struct of the fields of models, each of which may be left out."""
    described = {name: field for model in models for name, field in schema().objects[model].items()}
    fields = [(name, _kind(name, field, optimizers), msgspec.UNSET) for name, field in described.items()]
    # Its names stay as they are.
    return cast("type[StrictWire]", msgspec.defstruct(models[0], fields, bases=(StrictWire,), rename=str))


def _kind(name: str, field: Field, optimizers: tuple[str, ...]) -> Any:
    """What a field takes. Of several objects the first is the one that is used, but for the optimizer."""
    objects = tuple(kind["object"] for kind in field.kinds if isinstance(kind, dict) and "object" in kind)
    plain = [kind for kind in field.kinds if not (isinstance(kind, dict) and "object" in kind)]
    kinds = [
        *map(_value, plain),
        *([_settings_type(optimizers if name == "optimizer" else objects[:1])] if objects else []),
    ]
    return functools.reduce(operator.or_, kinds, msgspec.UnsetType)


def _value(kind: Any) -> Any:
    match kind:
        case {"choices": choices}:
            return Literal[tuple(choices)]
        case {"list": kinds}:
            return list[_union(kinds)]  # type: ignore[misc]
        case {"tuple": members}:
            return tuple[tuple(map(_union, members))]  # type: ignore[misc]
        case {"values": kinds}:
            return dict[str, _union(kinds)]  # type: ignore[misc]
        case _:
            return PLAIN[kind]


def _union(kinds: list[Any]) -> Any:
    return functools.reduce(operator.or_, map(_value, kinds))
