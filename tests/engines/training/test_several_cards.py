"""One job on several GPUs: here as processes on the CPU, which share each step as GPUs do.

What cannot be tried without GPUs is NCCL, and each process's choice of its own GPU.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.engines.conftest import Train, WriteRun, read_records

from training_presets import memory
from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    CheckpointRecord,
    DoneRecord,
    FailedRecord,
    FailureReason,
    Phase,
    StepRecord,
    StoppedRecord,
)
from training_schemas.spec import WeightDtype
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.training import process_group
from training_worker.engines.diffusers.training.checkpoints import TENSORS_FILE
from training_worker.engines.diffusers.training.worker_processes import failure_of_helper, progress_file

pytestmark = pytest.mark.trainer

PROGRAM = "training_worker.engines.diffusers"
TIMEOUT = 180.0
SHARED: dict[str, Any] = {"batch_size": 1, "gradient_accumulation_steps": 4, "max_train_steps": 4}


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the program as the daemon does: in a session of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "stderr.log").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(folder)], env=environment, stderr=errors, start_new_session=True
        )


def train_together(folder: Path) -> list[Any]:
    """Run to the end on several GPUs, and read the records."""
    program = start(folder)
    try:
        program.wait(TIMEOUT)
    finally:
        end_group(program)
    return read_records(folder)


def end_group(program: "subprocess.Popen[bytes]") -> None:
    """Leave nothing of a program."""
    if group(program.pid):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait(TIMEOUT)


def group(number: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, members = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(members) == number and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def wait_until(condition: Callable[[], Any]) -> Any:
    """Wait for it, but not for ever."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def steps(folder: Path) -> list[StepRecord]:
    """The steps that a run has taken."""
    return [record for record in read_records(folder) if isinstance(record, StepRecord)]


def learned(records: list[Any], folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the last checkpoint, and what is kept beside them."""
    saved = [record for record in records if isinstance(record, CheckpointRecord)]
    assert saved, (folder / "stderr.log").read_text()
    return {
        f"{file.name}:{name}": tensor
        for file in Path(saved[-1].path).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("training_type", TrainingType)
def test_two_gpus_give_what_one_gives(write_run: WriteRun, train: Train, training_type: TrainingType) -> None:
    """The same losses and weights but for the order of sums, with everything on that a sample leaves to chance."""
    word = "<robot>" if training_type is TrainingType.SDXL_TEXTUAL_INVERSION else ""
    common: dict[str, Any] = {
        **SHARED,
        "training_type": training_type,
        "trigger_word": word,
        "caption_dropout": 0.3,
        "random_flip": True,
        "checkpoint_every": 4,
        "ema_decay": 0.5,
    }
    one, two = write_run("one", **common), write_run("two", **common, gpu_count=2)
    (_, expected), records = train(one), train_together(two)

    assert isinstance(records[-1], DoneRecord), (two / "stderr.log").read_text()
    assert [step.loss for step in steps(two)] == pytest.approx([step.loss for step in steps(one)], rel=1e-4)
    shared = learned(records, two)
    for name, tensor in learned(expected, one).items():
        if not name.startswith(TENSORS_FILE):
            torch.testing.assert_close(shared[name], tensor, rtol=1e-3, atol=1e-5)


def test_images_that_are_encoded_at_each_step_are_encoded_by_those_that_need_them(
    write_run: WriteRun, train: Train
) -> None:
    """Without caches each process encodes its own share, and the samples are the same."""
    live: dict[str, Any] = {
        **SHARED,
        "cache_vae_outputs": False,
        "cache_text_encoder_outputs": False,
        "random_crop": True,
        "shuffle_captions": True,
    }
    one, two = write_run("one", **live), write_run("two", **live, gpu_count=2)
    train(one)

    assert isinstance(train_together(two)[-1], DoneRecord)
    assert [step.loss for step in steps(two)] == pytest.approx([step.loss for step in steps(one)], rel=1e-4)


def test_a_run_on_two_gpus_goes_on_exactly(write_run: WriteRun, train: Train) -> None:
    """From a checkpoint, to the last bit; and one GPU can go on where two have stopped."""
    common: dict[str, Any] = {**SHARED, "checkpoint_every": 2, "keep_checkpoints": 3}
    whole = write_run("whole", **common, gpu_count=2)
    records = train_together(whole)
    halfway = next(record.path for record in records if isinstance(record, CheckpointRecord))
    assert halfway.endswith("step-00000002")
    resumed = write_run("resumed", **common, gpu_count=2, resume_from=halfway)
    alone = write_run("alone", **common, resume_from=halfway)

    torch.testing.assert_close(learned(train_together(resumed), resumed), learned(records, whole), rtol=0, atol=0)
    train(alone)
    assert [step.loss for step in steps(alone)] == pytest.approx([step.loss for step in steps(whole)][2:], rel=1e-4)


def test_a_stop_is_heeded_by_all(write_run: WriteRun) -> None:
    """SIGTERM to the group: the leader saves what was done, and no process is left."""
    folder = write_run(**SHARED | {"max_train_steps": 100_000}, gpu_count=2)
    program = start(folder)
    try:
        wait_until(lambda: steps(folder))
        os.killpg(program.pid, signal.SIGTERM)
        assert program.wait(TIMEOUT) == 3
        wait_until(lambda: not group(program.pid))
    finally:
        end_group(program)
    *_, saved, stopped = read_records(folder)
    assert isinstance(stopped, StoppedRecord)
    assert isinstance(saved, CheckpointRecord)
    assert saved.step == stopped.step == len(steps(folder))


@pytest.mark.parametrize("victim", ["helper", "leader"])
def test_none_goes_on_alone(write_run: WriteRun, victim: str) -> None:
    """A helper that is killed is a failure that names it; with the leader, its helpers end."""
    folder = write_run(**SHARED | {"max_train_steps": 100_000}, gpu_count=2)
    program = start(folder)
    try:
        wait_until(lambda: steps(folder))
        (helper,) = set(group(program.pid)) - {program.pid}
        os.kill(helper if victim == "helper" else program.pid, signal.SIGKILL)
        assert program.wait(TIMEOUT) == (1 if victim == "helper" else -signal.SIGKILL)
        wait_until(lambda: not group(program.pid))
    finally:
        end_group(program)
    if victim == "helper":
        failed = read_records(folder)[-1]
        assert isinstance(failed, FailedRecord)
        assert failed.reason is FailureReason.TRAINER_CRASHED
        assert failed.message == "the process of GPU 2 ended with status -9"


def test_a_helper_that_cannot_begin_fails_the_run_at_once(write_run: WriteRun) -> None:
    """Whoever waits for it to join does not wait any longer."""
    folder = write_run(**SHARED, gpu_count=2)
    (folder / progress_file(1)).write_text("started before\n")

    failed = train_together(folder)[-1]

    assert isinstance(failed, FailedRecord)
    assert failed.message == "the process of GPU 2 ended with status 1"


def test_a_loss_that_is_not_finite_is_reported_once(write_run: WriteRun) -> None:
    """Both processes see it in the same step, and one reports it; activations overflow 16 bits at such a rate."""
    high: dict[str, Any] = {"weight_dtype": WeightDtype.FLOAT16, "learning_rate": 1.0, "lora_rank": 256}
    folder = write_run(**SHARED | high | {"max_train_steps": 60}, gpu_count=2)

    *before, failed = train_together(folder)

    assert isinstance(failed, FailedRecord)
    assert failed.reason is FailureReason.LOSS_NOT_FINITE
    assert not any(isinstance(record, FailedRecord) for record in before)


def test_a_helper_reports_what_it_failed_of(tmp_path: Path) -> None:
    """Its last record has the reason; where there is none, its exit status must do."""
    with ProgressWriter(tmp_path / progress_file(3)) as progress:
        progress.phase(Phase.LOADING_MODEL)
        assert failure_of_helper(tmp_path, 3, 1).reason is FailureReason.TRAINER_CRASHED
        progress.write(FailedRecord, reason=FailureReason.OUT_OF_MEMORY, message="out of memory", faults=[])

    failure = failure_of_helper(tmp_path, 3, 1)

    assert (failure.reason, str(failure)) == (FailureReason.OUT_OF_MEMORY, "GPU 4: out of memory")


def test_the_planner_counts_the_piece_that_gradients_travel_in() -> None:
    """Engines do not import presets: each has the figure, and here they meet."""
    assert memory.PIECE == process_group.PIECE
