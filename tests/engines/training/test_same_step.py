"""A step is the same however it is cut: into micro-batches of any size, and among any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.engines.step_gradients import LOSS, gradients_of_step, mixed_trainer

from training_schemas.jobs import ModelFamily, TrainingType
from training_worker.engines.diffusers.pipelines import PIPELINES

pytestmark = pytest.mark.trainer

TIMEOUT = 180.0
# What rounding in float32 may make of it: SDXL's convolutions sum in another order for each size of batch.
LORAS = {TrainingType.FLUX_LORA: 1e-6, TrainingType.SDXL_LORA: 4e-6}
# Batch sizes, each with its accumulation, of a step of eight samples.
CUTS = [(4, 2), (2, 4), (1, 8)]
Gradients = dict[str, torch.Tensor]
Case = tuple[Path, TrainingType, int, int]


@pytest.fixture
def models(tiny_model: Path, tiny_sdxl: Path) -> dict[ModelFamily, Path]:
    """The tiny model of each family."""
    return {ModelFamily.FLUX: tiny_model, ModelFamily.SDXL: tiny_sdxl}


def alone(
    model: Path, training_type: TrainingType, batch_size: int, accumulation: int, dtype: torch.dtype = torch.float32
) -> Gradients:
    """The gradients of a step of one process, whose model computes in a type."""
    trainer = mixed_trainer(model, training_type, batch_size=batch_size, gradient_accumulation_steps=accumulation)
    trainer.pipeline.denoiser.to(dtype)
    return gradients_of_step(trainer)


def together(folder: Path, size: int, cases: list[Case]) -> list[list[Gradients]]:
    """What each of several processes has of the same step, for each case."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-m", "tests.engines.step_gradients", str(folder)]
    encoded = [json.dumps([str(model), *rest]) for model, *rest in cases]
    processes = [subprocess.Popen([*program, str(rank), str(size), *encoded], env=environment) for rank in range(size)]
    try:
        assert [process.wait(TIMEOUT) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        [load_file(folder / f"{number}-{rank}.safetensors") for rank in range(size)] for number in range(len(cases))
    ]


def difference(expected: Gradients, other: Gradients) -> float:
    """The most that a gradient is off, as a share of the step's largest; or the loss, of itself."""
    assert expected.keys() == other.keys()
    off = {name: float((expected[name] - other[name]).abs().max()) for name in expected}
    scale = max(float(gradient.abs().max()) for name, gradient in expected.items() if name != LOSS)
    return max(off.pop(LOSS) / float(expected[LOSS]), max(off.values()) / scale)


@pytest.mark.parametrize("training_type", LORAS)
def test_a_step_is_the_same_in_micro_batches_of_any_size(
    models: dict[ModelFamily, Path], training_type: TrainingType
) -> None:
    """Of images of several shapes, with masks, mirrored, and some without their captions."""
    model = models[training_type.family]
    whole = alone(model, training_type, 8, 1)

    for cut in CUTS:
        assert difference(whole, alone(model, training_type, *cut)) <= LORAS[training_type]


@pytest.mark.parametrize("training_type", LORAS)
def test_what_differs_is_rounding(
    models: dict[ModelFamily, Path], training_type: TrainingType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 nothing does."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    # Ours compute in the base's type, and name float32 where they mean it.
    monkeypatch.setattr(PIPELINES[training_type], "make_denoiser_lean", lambda _: None)
    model = models[training_type.family]
    whole = alone(model, training_type, 8, 1, torch.float64)

    for cut in CUTS:
        assert difference(whole, alone(model, training_type, *cut, torch.float64)) <= 1e-13


def test_two_processes_share_the_step_that_one_would_take(tmp_path: Path, models: dict[ModelFamily, Path]) -> None:
    """Each ends with the gradients of all, also where one of them has no micro-batch; and none waits for ever."""
    cuts = [(1, 1), (2, 4), (4, 2)]
    cases = [(models[kind.family], kind, *cut) for kind in LORAS for cut in cuts]

    for (model, kind, size, accumulation), found in zip(cases, together(tmp_path, 2, cases), strict=True):
        whole = alone(model, kind, size * accumulation, 1)
        for gradients in found:
            assert difference(whole, gradients) <= LORAS[kind]
