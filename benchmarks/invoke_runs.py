"""What is trained by both, the built-in trainer and invoke-training, and their settings for it, as equal as can be."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tiny_runs import SMALL, TIMEOUT, UNCACHED, Bench, run_module
from training_schemas.jobs import ModelFamily, TrainingType
from training_worker.engines.diffusers.models.lora import FLUX_ATTENTION, SDXL_ATTENTION

STEPS = 60
WARM_UP = 10
RUNNER = Path(__file__).with_name("invoke_runner.py")
ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

TOKEN, FIRST_TOKEN, VECTORS = "<concept>", "a", 4
RATE, DECAY = 1e-4, 1e-2


class Case(NamedTuple):
    """One type of training, with or without caches, each side's own."""

    kind: TrainingType
    ours_cached: bool
    theirs_cached: bool

    @property
    def batch(self) -> int:
        """Images a step; invoke-training noises all images of a batch for FLUX alike."""
        return 1 if self.kind.family is ModelFamily.FLUX else 2


class Speed(NamedTuple):
    """Steps a second of CPU time after those that warm up, and such seconds from the start to the end of the first."""

    rate: float
    cold: float


def run_ours(bench: Bench, case: Case) -> Speed:
    """Train with the built-in trainer."""
    settings: dict[str, Any] = {
        "batchSize": case.batch,
        "maxTrainSteps": STEPS,
        "aspectRatioBuckets": False,
        "learningRate": RATE,
        "weightDecay": DECAY,
    }
    if case.kind is TrainingType.SDXL_TEXTUAL_INVERSION:
        settings |= {"triggerWord": TOKEN, "initialToken": FIRST_TOKEN, "embeddingVectors": VECTORS}
    run = bench.write(case.kind, **settings, **({} if case.ours_cached else UNCACHED))
    times = run / "times.json"
    run_module("benchmarks.own_runner", str(run), str(times), **ALONE)
    return _speed(json.loads(times.read_bytes()))


def run_theirs(bench: Bench, case: Case, python: str, folder: Path) -> Speed:
    """Train with invoke-training, below ``folder``, in the interpreter that has it."""
    config, times, log = folder / "config.json", folder / "times.json", folder / "log"
    config.write_text(json.dumps(invoke_config(bench, case, folder)), encoding="utf-8")
    with log.open("wb") as output:
        subprocess.run(  # noqa: S603 - the operator's own interpreter
            [python, str(RUNNER), str(config), str(times)],
            check=True,
            stdout=output,
            stderr=output,
            env=os.environ | ALONE,
            timeout=TIMEOUT,
        )
    return _speed(json.loads(times.read_bytes()))


def invoke_config(bench: Bench, case: Case, folder: Path) -> dict[str, Any]:
    """The settings of invoke-training; what is not set is its default, as it is with ours."""
    common = {
        "type": case.kind,
        "seed": 0,
        "base_output_dir": str(folder),
        "model": str(bench.model(case.kind.family)),
        "max_train_steps": STEPS,
        "save_every_n_steps": STEPS + 1,
        "validate_every_n_steps": STEPS + 1,
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": RATE, "weight_decay": DECAY},
        "lr_scheduler": "constant",
        "max_grad_norm": 1.0,
        "weight_dtype": SMALL["weightDtype"],
        "train_batch_size": case.batch,
        "cache_vae_outputs": case.theirs_cached,
        "data_loader": _data_loader(bench, case.kind),
    }
    adapter = {"lora_rank_dim": SMALL["loraRank"], "train_text_encoder": False}
    texts = {"cache_text_encoder_outputs": case.theirs_cached}
    match case.kind:
        case TrainingType.FLUX_LORA:
            own = {"flux_lora_target_modules": FLUX_ATTENTION, "lora_checkpoint_format": "invoke_peft"}
            return common | adapter | texts | own | {"transformer_learning_rate": RATE}
        case TrainingType.SDXL_LORA:
            return common | adapter | texts | {"unet_lora_target_modules": SDXL_ATTENTION}
        case TrainingType.SDXL_FINETUNE:
            return common | texts
        case TrainingType.SDXL_TEXTUAL_INVERSION:
            return common | {"placeholder_token": TOKEN, "initializer_token": FIRST_TOKEN, "num_vectors": VECTORS}


def _data_loader(bench: Bench, kind: TrainingType) -> dict[str, Any]:
    images = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(bench.dataset)}
    loader = {"dataset": images, "resolution": SMALL["resolution"]}
    match kind:
        case TrainingType.FLUX_LORA:
            return loader | {"type": "IMAGE_CAPTION_FLUX_DATA_LOADER"}
        case TrainingType.SDXL_TEXTUAL_INVERSION:
            own = {"caption_templates": ["{}"], "keep_original_captions": True}
            return loader | {"type": "TEXTUAL_INVERSION_SD_DATA_LOADER"} | own
        case _:
            return loader | {"type": "IMAGE_CAPTION_SD_DATA_LOADER"}


def _speed(ends: list[float]) -> Speed:
    if len(ends) != STEPS:
        raise RuntimeError(f"{len(ends)} steps of {STEPS} were taken")
    return Speed(rate=(STEPS - WARM_UP) / (ends[-1] - ends[WARM_UP - 1]), cold=ends[0])
