"""Runs of the built-in trainer with the tiny models: where they are written, how they are started, what they report."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from training_presets.presets import presets
from training_schemas.jobs import EngineName, ModelFamily, TrainingType
from training_schemas.progress import StepRecord, decode_record
from training_schemas.spec import PROGRESS_FILE, SPEC_FILE, RunSpec

STEPS = 30
PROGRAM = "training_worker.engines.diffusers"
TIMEOUT = 300.0  # seconds that any of our programs may take
SMALL: dict[str, Any] = {
    "resolution": 64,
    "maxTrainSteps": STEPS,
    "loraRank": 8,
    "batchSize": 2,
    "gradientAccumulationSteps": 1,
    "weightDtype": "float32",
    "quantization": "none",
    "optimizer": "adamw",
    "gradientCheckpointing": False,
}
# What encoders make, made at each step.
UNCACHED: dict[str, Any] = {"cacheVaeOutputs": False, "cacheTextEncoderOutputs": False}

numbers = itertools.count()


class Bench:
    """Runs of the trainer below one folder, with its tiny models and a drawn data set."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.dataset = folder / "robots"
        for family in ModelFamily:
            run_module(f"{PROGRAM}.models.tiny", str(self.model(family)), family)
        run_module("training_worker.engines.demo_dataset", str(self.dataset))

    def model(self, family: ModelFamily) -> Path:
        """The folder of a family's tiny pipeline."""
        return self._folder / family

    def write(self, training_type: TrainingType, cache: str | None = None, **settings: Any) -> Path:
        """Write a run folder; runs with the same ``cache`` share what encoders made."""
        run = self._folder / f"run-{next(numbers)}"
        run.mkdir()
        family = training_type.family
        preset = presets()["flux_24gb_balanced" if family is ModelFamily.FLUX else "sdxl_balanced"]
        spec = RunSpec(
            job_id="bench",
            attempt=1,
            training_type=training_type,
            engine=EngineName.DIFFUSERS,
            model_path=str(self.model(family)),
            dataset_path=str(self.dataset),
            attempt_path=str(run / "attempt"),
            resume_from=None,
            device="cpu",
            parameters=preset.parameters_for(training_type) | SMALL | settings,
            cache_path=None if cache is None else str(self._folder / cache),
            cache_limit_mib=1024,
        )
        (run / SPEC_FILE).write_bytes(msgspec.json.encode(spec))
        return run


def run_module(module: str, *arguments: str, **environment: str) -> str:
    """Run one of our programs, and give what it prints."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(  # noqa: S603 - our own
        command, check=True, capture_output=True, text=True, env=os.environ | environment, timeout=TIMEOUT
    ).stdout


def steps_of(run: Path) -> list[StepRecord]:
    """The steps that a run has reported."""
    lines = (run / PROGRESS_FILE).read_bytes().splitlines()
    return [record for record in map(decode_record, lines) if isinstance(record, StepRecord)]
