"""Runs of the engine ``invoke``: their upstream configs, written by hand, and the program as the daemon starts it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
from tests.engines.conftest import PARAMETERS

from training_schemas.jobs import ModelFamily, TrainingType
from training_worker.engines.invoke.spec import Spec

PROGRAM = Path(__file__).parents[2] / "daemon/training_worker/engines/invoke"
INTERPRETER = os.environ.get("INVOKE_TRAINING_PYTHON", "")
TOKEN = "<concept>"

LOADERS = {
    TrainingType.FLUX_LORA: "IMAGE_CAPTION_FLUX_DATA_LOADER",
    TrainingType.SDXL_LORA: "IMAGE_CAPTION_SD_DATA_LOADER",
    TrainingType.SDXL_TEXTUAL_INVERSION: "TEXTUAL_INVERSION_SD_DATA_LOADER",
    TrainingType.SDXL_FINETUNE: "IMAGE_CAPTION_SD_DATA_LOADER",
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
OWN: dict[TrainingType, dict[str, Any]] = {
    TrainingType.FLUX_LORA: {
        "lora_checkpoint_format": "invoke_peft",
        "lora_rank_dim": 3,
        "transformer_learning_rate": 0.01,
        "train_text_encoder": False,
        "flux_lora_target_modules": [f"attn.{name}" for name in [*ATTENTION, "add_k_proj", "add_q_proj", "add_v_proj"]],
    },
    TrainingType.SDXL_LORA: {
        "lora_rank_dim": 3,
        "train_text_encoder": False,
        "unet_lora_target_modules": ATTENTION,
        "cache_text_encoder_outputs": True,
        "cache_vae_outputs": True,
    },
    TrainingType.SDXL_TEXTUAL_INVERSION: {
        "placeholder_token": TOKEN,
        "initializer_token": "a",
        "num_vectors": 2,
        "cache_vae_outputs": True,
    },
    TrainingType.SDXL_FINETUNE: {
        "save_checkpoint_format": "trained_only_diffusers",
        "save_dtype": "float32",
        "cache_text_encoder_outputs": True,
        "cache_vae_outputs": True,
    },
}


def engine_config(kind: TrainingType, *, loader: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A config of upstream's for the tiny models, but for what the program fills in."""
    data_loader: dict[str, Any] = {"type": LOADERS[kind], "resolution": 64}
    if kind is TrainingType.SDXL_TEXTUAL_INVERSION:
        data_loader |= {"caption_templates": ["{}"], "keep_original_captions": True}
    return {
        "type": kind.value,
        "seed": 0,
        "num_validation_images_per_prompt": 1,
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": 0.01, "weight_decay": 0.01},
        "lr_scheduler": "constant",
        "max_grad_norm": 1.0,
        "weight_dtype": "float32",
        "train_batch_size": 1 if kind.family is ModelFamily.FLUX else 2,
        **({} if kind.family is ModelFamily.FLUX else {"hf_variant": None}),
        **OWN[kind],
        "data_loader": data_loader | (loader or {}),
        **changes,
    }


def spec_of(dataset: Path, kind: TrainingType = TrainingType.FLUX_LORA, **changes: Any) -> Spec:
    """A spec for reading a data set."""
    parameters = msgspec.to_builtins(msgspec.structs.replace(PARAMETERS, **changes))
    return Spec(
        job_id="job",
        training_type=kind.value,
        model=Path("/model"),
        dataset=dataset,
        attempt=dataset.parent / "attempt",
        device="cpu",
        parameters=parameters,
        config=engine_config(kind),
        resume_from=None,
    )


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """Start a run, without our packages; its output goes to the run folder, as the daemon has it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "stdout.log").open("wb") as output, (folder / "stderr.log").open("wb") as errors:
        return subprocess.Popen(
            [INTERPRETER, str(PROGRAM), str(folder)],
            env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=errors,
        )
