"""The weights that upstream saves, in diffusers' names, and with a scale of 1: alpha equals the rank."""

import importlib
import json
from pathlib import Path
from typing import Any

from .model import tensor_names


def flux_weights(folder: Path) -> dict[str, Any]:
    """Read PEFT's folder of an adapter of FLUX, in diffusers' names, so that alpha equals the rank."""
    settings = json.loads((folder / "transformer" / "adapter_config.json").read_bytes())
    scale = settings["lora_alpha"] / settings["r"]
    weights = {}
    for key, weight in load_weights(folder / "transformer" / "adapter_model.safetensors").items():
        name = "transformer." + key.removeprefix("base_model.model.")
        weights[name] = weight.float() * (scale if name.endswith(".lora_B.weight") else 1)
    return weights


def sdxl_weights(file: Path, model: Path) -> dict[str, Any]:
    """Read a file of an adapter of SDXL in the same way. Its names are the layers' with underscores for dots."""
    layers = {
        f"{prefix}_{name.removesuffix('.weight').replace('.', '_')}": f"{part}.{name.removesuffix('.weight')}"
        for part, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2"))
        for name in tensor_names(model / part)
        if name.endswith(".weight")
    }
    found = load_weights(file)
    weights = {}
    for module in sorted({key.split(".")[0] for key in found}):
        down, up = found[f"{module}.lora_down.weight"].float(), found[f"{module}.lora_up.weight"].float()
        weights[f"{layers[module]}.lora_A.weight"] = down
        weights[f"{layers[module]}.lora_B.weight"] = up * (found[f"{module}.alpha"].item() / len(down))
    return weights


def load_weights(file: Path) -> dict[str, Any]:
    """Read all tensors of a file."""
    tensors: dict[str, Any] = importlib.import_module("safetensors.torch").load_file(file)
    return tensors
