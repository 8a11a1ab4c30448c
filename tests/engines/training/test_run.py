"""Whole runs in this process: what is reported, and how they end."""

import errno
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.engines.conftest import Train, WriteRun
from tests.engines.trainers import assert_same_adapter
from tests.engines.watching import WatchedProgress

from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    DoneRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    ProgressRecord,
    StepRecord,
    StoppedRecord,
    WarningRecord,
)
from training_schemas.spec import LEASE_FILE, REQUESTS_FILE, Execution, RunLease, WeightDtype
from training_worker.engines.common.export.files import ADAPTER_FILE
from training_worker.engines.common.protocol.failures import failure_of
from training_worker.engines.diffusers.training.run import TrainingRun
from training_worker.engines.diffusers.training.trainer import Trainer

pytestmark = pytest.mark.trainer

TRANSFORMER = Path("transformer", "diffusion_pytorch_model.safetensors")


class TickingClock:
    """A clock that goes on by two seconds whenever somebody looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2
        return self.now


def losses(records: list[AnyRecord]) -> list[float | None]:
    """Give the losses of all steps."""
    return [record.loss for record in records if isinstance(record, StepRecord)]


class TrainingBegin:
    """Notes the time of a clock when training begins."""

    def __init__(self, clock: TickingClock) -> None:
        self._clock = clock
        self.at = 0.0

    def __call__(self, record: type[ProgressRecord], fields: dict[str, Any]) -> None:
        if record is PhaseRecord and fields["phase"] is Phase.TRAINING:
            self.at = self._clock.now


def orphan_at(folder: Path, begin: float, step: int) -> None:
    """Write a lease that by the ticking clock has run out when a step begins."""
    deadline = begin + 2.0 * (step - 1)
    lease = RunLease(deadline=deadline, max_isolation=1)
    (folder / LEASE_FILE).write_bytes(msgspec.json.encode(lease))


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_training_lowers_the_fixed_loss(write_run: WriteRun, train: Train) -> None:
    """By more than a tenth within thirty steps."""
    code, records = train(write_run(max_train_steps=30, lora_rank=8))
    done = records[-1]

    assert code == 0
    assert isinstance(done, DoneRecord)
    assert done.fixed_loss_before is not None
    assert done.fixed_loss_after is not None
    assert done.fixed_loss_after < 0.9 * done.fixed_loss_before
    assert (30, losses(records)[0], losses(records)[-1]) == (done.steps, done.first_loss, done.last_loss)


@pytest.mark.parametrize("dtype", [WeightDtype.FLOAT16, WeightDtype.BFLOAT16])
def test_a_base_of_16_bits_is_trained_and_sampled(write_run: WriteRun, train: Train, dtype: WeightDtype) -> None:
    """With an adapter of 32 bits all the same."""
    folder = write_run(weight_dtype=dtype, max_train_steps=2, validation_prompts=["a robot"])

    code, _ = train(folder)

    assert code == 0
    assert {torch.float32} == {tensor.dtype for tensor in load_file(folder / "attempt" / ADAPTER_FILE).values()}


def test_samples_and_checkpoints_leave_the_result_as_it_is(write_run: WriteRun, train: Train) -> None:
    """Also those that were asked for: the same job gives the same weights, to the last bit."""
    plain, watched = write_run("plain"), write_run("watched", validation_prompts=["a robot"], checkpoint_every=4)
    (watched / REQUESTS_FILE).write_text('{"request":"checkpoint"}\n{"request":"sample"}\n', encoding="utf-8")
    train(plain)
    train(watched)

    assert_same_adapter(plain, watched)


def test_an_orphan_saves_its_work_and_stops(write_run: WriteRun, train: Train) -> None:
    """And another attempt ends with the weights of a run that was never interrupted."""
    whole, orphan = write_run("whole"), write_run("orphan")
    clock = TickingClock()
    begin = TrainingBegin(clock)
    _, all_records = train(whole, clock, writer=partial(WatchedProgress, on_record=begin))
    orphan_at(orphan, begin.at, step=4)

    code, records = train(orphan, TickingClock())
    checkpoint, stopped = records[-2:]
    assert isinstance(checkpoint, CheckpointRecord)
    assert isinstance(stopped, StoppedRecord)
    assert (3, 3, "orphan", 3) == (code, stopped.step, stopped.why, checkpoint.step)

    resumed = write_run("resumed", resume_from=checkpoint.path)
    code, records = train(resumed)
    assert code == 0
    assert losses(all_records)[3:] == losses(records)
    assert_same_adapter(whole, resumed)
    done, all_done = records[-1], all_records[-1]
    assert isinstance(done, DoneRecord)
    assert isinstance(all_done, DoneRecord)
    assert (all_done.first_loss, all_done.fixed_loss_before) == (done.first_loss, done.fixed_loss_before)


def test_a_checkpoint_that_is_gone_costs_time_and_not_the_job(write_run: WriteRun, train: Train) -> None:
    """The run reports that and starts over."""
    code, records = train(write_run(resume_from="/nowhere/step-00000004", max_train_steps=2))
    warnings = [record.message for record in records if isinstance(record, WarningRecord)]

    assert code == 0
    assert len(losses(records)) == 2
    assert len(warnings) == 1
    assert "/nowhere/step-00000004" in warnings[0]


def test_a_finished_job_that_is_resumed_is_exported_again(write_run: WriteRun, train: Train) -> None:
    """Its trainer was stopped between the last step and the result."""
    first = write_run("first", checkpoint_every=6)
    train(first)
    again = write_run("again", resume_from=str(first / "attempt" / "checkpoints" / "step-00000006"))

    code, records = train(again)

    assert code == 0
    assert losses(records) == []
    assert_same_adapter(first, again)


def test_a_model_that_gives_no_numbers_is_reported_at_once(write_run: WriteRun, train: Train, model: Path) -> None:
    """Before any step is taken for nothing."""
    tensors = load_file(model / TRANSFORMER)
    tensors["proj_out.bias"].fill_(torch.nan)
    save_file(tensors, model / TRANSFORMER)

    code, records = train(write_run(model_path=str(model)))

    assert code == 1
    assert isinstance(records[-1], FailedRecord)
    assert FailureReason.LOSS_NOT_FINITE == records[-1].reason


def test_a_loss_that_is_no_number_leaves_the_checkpoint_before_it(write_run: WriteRun, train: Train) -> None:
    """Here the activations overflow 16 bits, since the rate is far too high."""
    folder = write_run(
        weight_dtype=WeightDtype.FLOAT16, learning_rate=1.0, lora_rank=256, max_train_steps=60, checkpoint_every=1
    )

    code, records = train(folder)

    failed = records[-1]
    saved = [record for record in records if isinstance(record, CheckpointRecord)]
    steps = len(losses(records))
    assert code == 1
    assert isinstance(failed, FailedRecord)
    assert FailureReason.LOSS_NOT_FINITE == failed.reason
    assert list(range(1, steps + 1)) == [record.step for record in saved]
    assert {Path(record.path) for record in saved} == set((folder / "attempt" / "checkpoints").iterdir())
    adapter = load_file(Path(saved[-1].path) / ADAPTER_FILE)
    assert all(bool(tensor.isfinite().all()) for tensor in adapter.values())


def test_weights_that_are_missing_are_not_made_up(write_run: WriteRun, train: Train, model: Path) -> None:
    """Diffusers would fill them with random numbers."""
    tensors = load_file(model / TRANSFORMER)
    del tensors["proj_out.bias"]
    save_file(tensors, model / TRANSFORMER)

    code, records = train(write_run(model_path=str(model)))

    assert code == 1
    assert isinstance(records[-1], FailedRecord)
    assert FailureReason.MODEL_INVALID == records[-1].reason
    assert "cannot load transformer" in records[-1].message
    assert "proj_out.bias" in records[-1].message


def test_a_truncated_file_of_weights_is_named(write_run: WriteRun, train: Train, model: Path) -> None:
    """As a download leaves it that was broken off."""
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    _, records = train(write_run(model_path=str(model)))

    assert isinstance(records[-1], FailedRecord)
    assert FailureReason.MODEL_INVALID == records[-1].reason
    assert "cannot load vae" in records[-1].message


def test_what_nobody_foresaw_is_a_crash_with_a_traceback(
    write_run: WriteRun, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record is short, the traceback goes to the log."""

    def crash(_: TrainingRun) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(TrainingRun, "run", crash)

    code, records = train(write_run())

    assert code == 1
    assert isinstance(records[-1], FailedRecord)
    assert (FailureReason.TRAINER_CRASHED, "cannot go on: RuntimeError: a bug") == (
        records[-1].reason,
        records[-1].message,
    )
    assert "in crash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.cuda.OutOfMemoryError("tried to allocate 2 GiB"), FailureReason.OUT_OF_MEMORY),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), FailureReason.DISK_FULL),
        (SafetensorError("I/O error: No space left on device (os error 28)"), FailureReason.DISK_FULL),
        (OSError(errno.EIO, "Input/output error"), FailureReason.TRAINER_CRASHED),
    ],
)
def test_what_the_host_lacks_is_distinguished_from_bugs(error: Exception, reason: FailureReason) -> None:
    """The same job may do well elsewhere, or with other settings."""
    assert reason == failure_of(error).reason


def test_out_of_memory_names_the_phase(write_run: WriteRun, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one sees whether the plan was wrong about loading, training or samples."""

    def run_out(*_: object) -> float:
        raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(Trainer, "step", run_out)

    _, records = train(write_run())

    failed = records[-1]
    assert isinstance(failed, FailedRecord)
    assert FailureReason.OUT_OF_MEMORY == failed.reason
    assert "cannot go on: out of memory in phase training: tried to allocate 2 GiB" == failed.message


def test_data_that_stays_on_the_device_changes_nothing(write_run: WriteRun, train: Train) -> None:
    """Nor leaves it a thread behind."""
    threads = threading.active_count()
    plain = write_run("plain", random_flip=True)
    kept = write_run("kept", random_flip=True, execution=Execution(data_on_device=True))

    assert losses(train(plain)[1]) == losses(train(kept)[1])
    assert_same_adapter(plain, kept)
    assert threads == threading.active_count()
