"""The description of a result in its file: the metadata of safetensors, which other programs show and search.

Keys that begin with ``modelspec.`` are those of Stability AI's Model Metadata Standard, version 1.0.1
(https://github.com/Stability-AI/ModelSpec), and ``ss_`` are sd-scripts', by which programs recognize for which base
model a LoRA is. The rest are our own.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol.fsync import flush

ARCHITECTURES = {
    "FLUX_LORA": "flux-1-dev/lora",
    "SDXL_LORA": "stable-diffusion-xl-v1-base/lora",
    "SDXL_TEXTUAL_INVERSION": "stable-diffusion-xl-v1-base/textual-inversion",
    "SDXL_FINETUNE": "stable-diffusion-xl-v1-base",
}
# Of a LoRA: the version of the base model, and sd-scripts' module.
NETWORKS = {
    "FLUX_LORA": ("flux1", "networks.lora_flux"),
    "SDXL_LORA": ("sdxl_base_v1-0", "networks.lora"),
}
HASH = "modelspec.hash_sha256"

# The code whose names a file's tensors bear: diffusers', or the first of the model, as kohya's files do.
DIFFUSERS = "diffusers"
FLUX_CODE = "https://github.com/black-forest-labs/flux"
SDXL_CODE = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True, kw_only=True)
class ResultFacts:
    """What a run made, and of what.

    ``date`` is ISO 8601, ``base_model`` the name of its folder. ``settings`` are the job's parameters in JSON, of which
    each engine has its own writer: they differ in numbers and in letters beyond ASCII.
    """

    training_type: str
    resolution: int
    trigger_word: str
    lora_rank: int
    settings: str
    title: str
    date: str
    base_model: str
    dataset_hash: str
    step: int
    worker_version: str


def metadata_of(facts: ResultFacts, implementation: str) -> dict[str, str]:
    """Describe a result in a file with the tensors' names of an implementation."""
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[facts.training_type],
        "modelspec.implementation": implementation,
        "modelspec.title": facts.title,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.date": facts.date,
        "training_worker.version": facts.worker_version,
        "training_worker.base_model": facts.base_model,
        "training_worker.dataset_hash": facts.dataset_hash,
        "training_worker.step": str(facts.step),
        "training_worker.settings": facts.settings,
    }
    if facts.trigger_word:
        metadata["modelspec.trigger_phrase"] = facts.trigger_word
    if facts.training_type in NETWORKS:
        metadata["ss_base_model_version"], metadata["ss_network_module"] = NETWORKS[facts.training_type]
        metadata["ss_network_dim"] = metadata["ss_network_alpha"] = str(facts.lora_rank)
    return metadata


def write_with_metadata(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors with metadata and a hash of them all, for everybody to read.

    The file is whole or not there.
    """
    save_file = import_module("safetensors.torch").save_file
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


def _hash(tensors: Mapping[str, Any]) -> str:
    """Hash what follows the header, as the standard requires: the header's length is its first eight bytes."""
    content = memoryview(import_module("safetensors.torch").save(tensors))
    header = 8 + int.from_bytes(content[:8], "little")
    return f"0x{hashlib.sha256(content[header:]).hexdigest()}"
