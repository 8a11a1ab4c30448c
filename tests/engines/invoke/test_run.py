"""The run where invoke-training is not: what is decided at each step, and what becomes of what it saves."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.engines.conftest import WriteRun, read_records
from tests.engines.invoke_runs import spec_of

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    CheckpointRecord,
    FailureReason,
    StepRecord,
)
from training_schemas.spec import PROGRESS_FILE, AttentionKernel, Execution
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.invoke.progress_writer import ProgressWriter
from training_worker.engines.invoke.run import TrainingRun, choose_attention
from training_worker.engines.invoke.spec import USUAL_KERNELS, read_spec
from training_worker.engines.invoke.stop_signals import Control

pytestmark = pytest.mark.trainer

SDXL = TrainingType.SDXL_LORA


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """A run of 5 steps as upstream sees it, of which nothing is trained."""
    (tmp_path / "attempt").mkdir()
    spec = spec_of(tmp_path / "set", SDXL, max_train_steps=5, checkpoint_every=2, sample_every=3)
    records = ProgressWriter(tmp_path / PROGRESS_FILE)
    config = SimpleNamespace(validation_prompts=["a robot"])
    run = TrainingRun(spec, config, records, Control(tmp_path, records))
    return SimpleNamespace(run=run, config=config, spec=spec, control=run._control, records=records)


def test_each_step_decides_what_upstream_does_after_it(training: Any) -> None:
    """By the job's intervals, and both at the end; the config that is logged before is no step."""
    training.run.on_log({"configuration": "long"}, None)
    wanted = []
    for step in range(1, 6):
        training.run.on_log({"train_loss": 0.5, "lr/text_encoder": 0.1, "lr/unet": 0.2}, step)
        config = training.config
        wanted.append((step % config.save_every_n_steps == 0, step % config.validate_every_n_steps == 0))

    assert [(False, False), (True, False), (False, True), (True, False), (True, True)] == wanted
    steps = [record for record in read_records(training.spec.attempt.parent) if isinstance(record, StepRecord)]
    assert [0.2] * 5 == [record.learning_rate for record in steps]


def test_the_rate_of_prodigy_is_that_which_it_found(training: Any) -> None:
    """Not the factor of it that was asked for."""
    training.run.on_log({"train_loss": 0.5, "lr/unet": 1.0, "lr/d*lr/unet": 1e-6}, 1)

    step = read_records(training.spec.attempt.parent)[-1]
    assert isinstance(step, StepRecord)
    assert step.learning_rate == 1e-6


def test_a_loss_that_is_not_finite_ends_the_run(training: Any) -> None:
    """Before upstream saves anything."""
    with pytest.raises(TrainingFailure, match="the loss of step 3 is nan") as caught:
        training.run.on_log({"train_loss": math.nan, "lr": 0.1}, 3)
    assert FailureReason.LOSS_NOT_FINITE == caught.value.reason


def save_upstream(training: Any, step: int, value: float) -> Any:
    """Save a checkpoint as upstream does, and call back."""
    path = training.spec.upstream / f"checkpoint-{step}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({"weight": torch.tensor([value])}, path)
    return SimpleNamespace(models=[SimpleNamespace(file_path=str(path))], step=step)


def test_checkpoints_are_moved_reported_and_dropped(training: Any) -> None:
    """The last ones are kept, readable for everybody."""
    training.spec.parameters["keepCheckpoints"] = 2
    for step in (2, 4, 5):
        training.control.step = step
        training.run.on_save_checkpoint(save_upstream(training, step, step))

    folder = training.spec.attempt / "checkpoints"
    assert ["step-00000004", "step-00000005"] == sorted(path.name for path in folder.iterdir())
    assert folder / "step-00000005/kohya_lora.safetensors" == training.run.checkpoint
    assert 0o644 == training.run.checkpoint.stat().st_mode & 0o777
    reported = [record for record in read_records(folder.parents[1]) if isinstance(record, CheckpointRecord)]
    assert [(step, str(folder / f"step-{step:08}")) for step in (2, 4, 5)] == [(one.step, one.path) for one in reported]
    assert [] == list(training.spec.upstream.iterdir())


def test_a_checkpoint_of_what_is_no_number_is_not_kept(training: Any) -> None:
    """A finite loss may have gradients that are not."""
    with pytest.raises(TrainingFailure, match="weight is not finite after step 2") as caught:
        training.run.on_save_checkpoint(save_upstream(training, 2, math.inf))

    assert FailureReason.LOSS_NOT_FINITE == caught.value.reason
    assert not (training.spec.attempt / "checkpoints").exists()


@pytest.mark.parametrize(
    ("execution", "flash"), [(Execution(), True), (Execution(attention_kernels=(AttentionKernel.MATH,)), False)]
)
def test_only_the_kernels_of_the_spec_are_used(write_run: WriteRun, execution: Execution, *, flash: bool) -> None:
    """CuDNN's is left out where the spec names none."""
    spec = read_spec(write_run(execution=execution, engine_config={"seed": 1}))

    choose_attention(spec.attention_kernels)

    cuda: Any = torch.backends.cuda
    assert (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()) == (flash, True, False)
    choose_attention(USUAL_KERNELS)
    assert tuple(str(kernel) for kernel in Execution().attention_kernels) == USUAL_KERNELS
