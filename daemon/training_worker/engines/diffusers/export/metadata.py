"""What a result's file says about itself, in the metadata of safetensors, which other programs show and search.

Keys that begin with ``modelspec.`` are those of Stability AI's Model Metadata Standard, version 1.0.1
(https://github.com/Stability-AI/ModelSpec), and ``ss_`` are sd-scripts', by which programs tell for which base model a
LoRA is. The rest are our own.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save, save_file

from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_worker.engines.common.protocol.fsync import flush

ARCHITECTURES = {
    TrainingType.FLUX_LORA: "flux-1-dev/lora",
    TrainingType.SDXL_LORA: "stable-diffusion-xl-v1-base/lora",
    TrainingType.SDXL_TEXTUAL_INVERSION: "stable-diffusion-xl-v1-base/textual-inversion",
    TrainingType.SDXL_FINETUNE: "stable-diffusion-xl-v1-base",
}
BASE_MODEL_VERSIONS = {ModelFamily.FLUX: "flux1", ModelFamily.SDXL: "sdxl_base_v1-0"}
NETWORK_MODULES = {ModelFamily.FLUX: "networks.lora_flux", ModelFamily.SDXL: "networks.lora"}
LORAS = {TrainingType.FLUX_LORA, TrainingType.SDXL_LORA}
HASH = "modelspec.hash_sha256"


class Implementation(StrEnum):
    """The code whose names a file's tensors bear: diffusers', or the first of the model, as kohya's files do."""

    DIFFUSERS = "diffusers"
    FLUX = "https://github.com/black-forest-labs/flux"
    SDXL = "https://github.com/Stability-AI/generative-models"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run made, and of what. ``date`` is ISO 8601, ``base_model`` the name of its folder."""

    training_type: TrainingType
    parameters: FluxLoraParameters | SdxlParameters
    title: str
    date: str
    base_model: str
    dataset_hash: str
    step: int
    worker_version: str


def result_metadata(result: Result, implementation: Implementation) -> dict[str, str]:
    """Describe a result in a file with the tensors' names of an implementation."""
    parameters = result.parameters
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[result.training_type],
        "modelspec.implementation": implementation.value,
        "modelspec.title": result.title,
        "modelspec.resolution": f"{parameters.resolution}x{parameters.resolution}",
        "modelspec.date": result.date,
        "training_worker.version": result.worker_version,
        "training_worker.base_model": result.base_model,
        "training_worker.dataset_hash": result.dataset_hash,
        "training_worker.step": str(result.step),
        "training_worker.settings": msgspec.json.encode(parameters).decode(),
    }
    if parameters.trigger_word:
        metadata["modelspec.trigger_phrase"] = parameters.trigger_word
    if result.training_type in LORAS:
        family, rank = result.training_type.family, str(parameters.lora_rank)
        metadata["ss_base_model_version"] = BASE_MODEL_VERSIONS[family]
        metadata["ss_network_module"] = NETWORK_MODULES[family]
        metadata["ss_network_dim"] = metadata["ss_network_alpha"] = rank
    return metadata


def write_with_metadata(tensors: dict[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors with metadata and a hash of them all, for everybody to read; the file is whole or not there."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, {"format": "pt", **metadata, HASH: _hash(tensors)})
        # safetensors writes for the owner alone.
        partial.chmod(0o644)
        flush(partial)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # of a full disk above all
        raise
    flush(path.parent)


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    """Hash what follows the header, as the standard says: the header's length is its first eight bytes."""
    content = memoryview(save(tensors))
    header = 8 + int.from_bytes(content[:8], "little")
    return f"0x{hashlib.sha256(content[header:]).hexdigest()}"
