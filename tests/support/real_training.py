"""Real training of tiny pipelines: their materials, a daemon that can do it, and jobs small enough for a CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.fleet import ROOT, Daemon, Fleet

JOB = "robot"

TRAINER = {
    "diffusers": {
        "command": [sys.executable, "-m", "training_worker.engines.diffusers"],
        "training_types": ["FLUX_LORA", "SDXL_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"],
    }
}
SMALL = {"gradient_accumulation_steps": 1, "gradient_checkpointing": False, "weight_dtype": "float32"}
SMALL_FLUX = SMALL | {"t5_tokenizer_max_length": 64}


def run_module(module: str, *arguments: Path | str) -> str:
    """Run one of our programs and return what it prints."""
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_materials(folder: Path) -> Path:
    """A tiny pipeline of each family and a drawn data set."""
    run_module("training_worker.engines.diffusers.models.tiny", folder / "model")
    run_module("training_worker.engines.diffusers.models.tiny", folder / "sdxl", "sdxl")
    run_module("training_worker.engines.demo_dataset", folder / "dataset")
    return folder


async def start(fleet: Fleet, materials: Path, worker_id: str = "w1", **changes: Any) -> Daemon:
    """A daemon with the built-in trainer and the tiny models."""
    if not (fleet.folder / "datasets" / "robots").exists():
        shutil.copytree(materials / "dataset", fleet.folder / "datasets" / "robots")
    models = {
        "black-forest-labs/FLUX.1-dev": str(materials / "model"),
        "stabilityai/stable-diffusion-xl-base-1.0": str(materials / "sdxl"),
    }
    settings: dict[str, Any] = {"models": models, "engines": TRAINER, "stop_grace": 30} | changes
    return await fleet.start(worker_id, **settings)


async def submit(fleet: Fleet, training_type: str = "FLUX_LORA", **fields: Any) -> None:
    """A job small enough for a CPU."""
    small = SMALL_FLUX if training_type == "FLUX_LORA" else SMALL
    overrides = small | fields.pop("config_overrides", {})
    await fleet.submit(
        JOB,
        training_type,
        dataset_path=str(fleet.folder / "datasets" / "robots"),
        resolution=64,
        lora_rank=8,
        learning_rate=0.01,
        config_overrides=overrides,
        **fields,
    )
