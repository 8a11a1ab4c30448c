"""Upstream's config."""

import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..common.protocol.failures import Fault, failure_of_faults
from .spec import Spec

# No step is a multiple of it.
NEVER = sys.maxsize

CONFIGS = {
    "FLUX_LORA": ("invoke_training.pipelines.flux.lora.config", "FluxLoraConfig"),
    "SDXL_LORA": ("invoke_training.pipelines.stable_diffusion_xl.lora.config", "SdxlLoraConfig"),
    "SDXL_TEXTUAL_INVERSION": (
        "invoke_training.pipelines.stable_diffusion_xl.textual_inversion.config",
        "SdxlTextualInversionConfig",
    ),
    "SDXL_FINETUNE": ("invoke_training.pipelines.stable_diffusion_xl.finetune.config", "SdxlFinetuneConfig"),
}


def check_config(config: Mapping[str, Any]) -> None:
    """See that what is read here is there; the rest is upstream's to check."""
    loader = config.get("data_loader")
    if not isinstance(loader, dict):
        raise failure_of_faults(
            "configInvalid", "cannot use the config", [Fault("$.engineConfig.data_loader", "missing")]
        )
    if not loader.get("aspect_ratio_buckets") and type(loader.get("resolution")) is not int:
        raise failure_of_faults(
            "configInvalid", "cannot use the config", [Fault("$.engineConfig.data_loader.resolution", "none")]
        )


def upstream_config(spec: Spec, lines: Path) -> Any:
    """Make upstream's config of the spec's, and have upstream check it.

    Raises:
        TrainingFailure: A setting is unknown there, or its value is invalid; the message names them all.
    """
    module, name = CONFIGS[spec.training_type]
    images = {
        "type": "IMAGE_CAPTION_JSONL_DATASET",
        "jsonl_path": str(lines),
        "image_column": "image",
        "caption_column": "text",
    }
    fields = {
        **spec.config,
        "model": str(spec.model),
        "base_output_dir": str(spec.upstream),
        "data_loader": {**spec.config["data_loader"], "dataset": images},
        "max_train_steps": spec.total,
        # When it saves and draws is decided at each step.
        "save_every_n_steps": NEVER,
        "validate_every_n_steps": NEVER,
    }
    kind = getattr(importlib.import_module(module), name)
    invalid = importlib.import_module("pydantic").ValidationError
    try:
        return kind.model_validate(fields)
    except invalid as error:
        faults = [Fault(_field(problem["loc"]), problem["msg"]) for problem in error.errors()]
        raise failure_of_faults("configInvalid", "cannot use the config", faults) from error


def _field(location: Iterable[object]) -> str:
    """Name a field without the names of classes and types that pydantic puts between where it has several to try."""
    parts = [str(part) for part in location]
    return ".".join(["$.engineConfig", *(part for part in parts if not re.fullmatch(r"[A-Z]\w*(_|Config)\w*", part))])
