"""The trainer as the daemon starts it: a process, a run folder, a signal and an exit code."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from tests.engines.conftest import Train, WriteRun, read_records
from tests.engines.trainers import assert_same_adapter

from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    DoneRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    SampleRecord,
    StepRecord,
    StoppedRecord,
)
from training_schemas.spec import LEASE_FILE, PROGRESS_FILE, RunLease
from training_worker.engines.common.export.files import ADAPTER_FILE

pytestmark = pytest.mark.trainer

Record = TypeVar("Record", bound=AnyRecord)

PROGRAM = "training_worker.engines.diffusers"
MAX_ISOLATION = 600


def start(*arguments: str) -> "subprocess.Popen[str]":
    """Start this Python with this path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def write_lease(folder: Path, deadline: float) -> None:
    """Write a lease as the daemon does, in one go."""
    path = folder / f".{LEASE_FILE}"
    path.write_bytes(msgspec.json.encode(RunLease(deadline=deadline, max_isolation=MAX_ISOLATION)))
    path.rename(folder / LEASE_FILE)


def of_type(records: list[AnyRecord], kind: type[Record]) -> list[Record]:
    """Pick the records of one kind."""
    return [record for record in records if isinstance(record, kind)]


def test_a_run_from_the_data_set_to_the_adapter(write_run: WriteRun) -> None:
    """With a checkpoint on the way and a sample before and after."""
    folder = write_run(max_train_steps=3, checkpoint_every=2, validation_prompts=["a small red robot"])
    attempt = folder / "attempt"

    with start("-m", PROGRAM, str(folder)) as program:
        output = program.communicate(timeout=120)
    records = read_records(folder)

    assert (0, ("", "")) == (program.returncode, output)
    assert list(range(1, len(records) + 1)) == [record.sequence for record in records]
    assert [
        Phase.STARTING,
        Phase.CHECKING_DATASET,
        Phase.CACHING_TEXT,
        Phase.CACHING_LATENTS,
        Phase.LOADING_MODEL,
        Phase.SAMPLING,
        Phase.TRAINING,
        Phase.CHECKPOINTING,
        Phase.TRAINING,
        Phase.SAMPLING,
        Phase.EXPORTING,
    ] == [record.phase for record in of_type(records, PhaseRecord)]
    assert [(1, 3), (2, 3), (3, 3)] == [(record.step, record.total_steps) for record in of_type(records, StepRecord)]
    assert [str(attempt / "checkpoints" / "step-00000002")] == [
        record.path for record in of_type(records, CheckpointRecord)
    ]
    samples = of_type(records, SampleRecord)
    assert [(0, "a small red robot"), (3, "a small red robot")] == [(record.step, record.prompt) for record in samples]
    assert all(Path(record.path).read_bytes().startswith(b"\x89PNG") for record in samples)
    done = records[-1]
    assert isinstance(done, DoneRecord)
    assert [
        (ADAPTER_FILE, "adapter"),
        ("kohya_lora.safetensors", "kohyaAdapter"),
        ("loss.png", "lossCurve"),
        ("samples.png", "contactSheet"),
        ("samples/step-00000000-00.png", "sample"),
        ("samples/step-00000003-00.png", "sample"),
    ] == [(artifact.path, artifact.kind) for artifact in done.artifacts]
    assert {"python", "torch", "diffusers", "peft"} <= done.versions.keys()
    assert [hashlib.sha256((attempt / artifact.path).read_bytes()).hexdigest() for artifact in done.artifacts] == [
        artifact.sha256 for artifact in done.artifacts
    ]


def test_sigterm_saves_the_work_for_another_attempt(write_run: WriteRun, train: Train) -> None:
    """Which ends with the weights of a run that was never interrupted."""
    whole, stopped = write_run("whole", max_train_steps=60), write_run("stopped", max_train_steps=60)
    with start("-m", PROGRAM, str(stopped)) as program:
        while program.poll() is None and not of_type(read_records(stopped), StepRecord):
            time.sleep(0.02)
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=60)

    checkpoint, last = read_records(stopped)[-2:]
    assert program.returncode == 3
    assert isinstance(checkpoint, CheckpointRecord)
    assert isinstance(last, StoppedRecord)
    assert (checkpoint.step, "signal") == (last.step, last.why)
    assert 0 < last.step < 60

    resumed = write_run("resumed", max_train_steps=60, resume_from=checkpoint.path)
    train(whole)
    train(resumed)
    assert_same_adapter(whole, resumed)


def test_an_orphan_saves_its_work_and_ends(write_run: WriteRun) -> None:
    """Its daemon is gone, and somebody else may have the job by now."""
    folder = write_run(max_train_steps=100_000)
    write_lease(folder, deadline=time.time())
    with start("-m", PROGRAM, str(folder)) as program:
        while program.poll() is None and not of_type(read_records(folder), StepRecord):
            time.sleep(0.02)
        write_lease(folder, deadline=time.time() - MAX_ISOLATION)
        output = program.communicate(timeout=60)

    checkpoint, last = read_records(folder)[-2:]
    assert (3, ("", "")) == (program.returncode, output)
    assert isinstance(checkpoint, CheckpointRecord)
    assert isinstance(last, StoppedRecord)
    assert (checkpoint.step, "orphan") == (last.step, last.why)
    assert Path(checkpoint.path).is_dir()


def test_a_stop_is_heard_from_the_first_moment_that_the_run_can_be_seen(write_run: WriteRun) -> None:
    """Before the training libraries are there; earlier still, the signal just ends the program."""
    folder = write_run()
    with start("-m", PROGRAM, str(folder)) as program:
        while program.poll() is None and not (folder / PROGRESS_FILE).exists():
            time.sleep(0.01)
        program.send_signal(signal.SIGTERM)
        output = program.communicate(timeout=60)

    last = read_records(folder)[-1]
    assert (3, ("", "")) == (program.returncode, output)
    assert isinstance(last, StoppedRecord)
    assert (0, "signal") == (last.step, last.why)


def test_a_bad_data_set_is_reported_before_anything_slow_happens(write_run: WriteRun, tmp_path: Path) -> None:
    """All of its faults, in the one record of the failure, without importing torch."""
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "a.png").write_bytes(b"no image")
    folder = write_run(dataset_path=str(dataset))

    script = f"import sys; from {PROGRAM}.__main__ import main; code = main(); print(int(code), 'torch' in sys.modules)"
    with start("-c", script, str(folder)) as program:
        output, errors = program.communicate(timeout=60)

    failed = read_records(folder)[-1]
    assert ("1 False\n", "") == (output, errors)
    assert isinstance(failed, FailedRecord)
    assert FailureReason.DATASET_INVALID == failed.reason
    assert [str(dataset / "a.png"), str(dataset / "a.txt")] == [fault.path for fault in failed.faults]


def test_a_stop_after_the_last_record_leaves_the_exit_status_as_it_is(write_run: WriteRun, tmp_path: Path) -> None:
    """The two should not contradict each other: a run that is done would be taken for one that was stopped."""
    folder = write_run(dataset_path=str(tmp_path / "nowhere"))
    with start("-m", PROGRAM, str(folder)) as program:
        while program.poll() is None and not of_type(read_records(folder), FailedRecord):
            time.sleep(0.001)
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=60)

    assert program.returncode == 1


def test_a_run_folder_that_is_missing_is_reported_on_stderr() -> None:
    """There is nowhere else to report it."""
    with start("-m", PROGRAM, "/nowhere") as program:
        _, errors = program.communicate(timeout=60)

    assert (1, "cannot start: [Errno 2] No such file or directory: '/nowhere/progress.jsonl'\n") == (
        program.returncode,
        errors,
    )
