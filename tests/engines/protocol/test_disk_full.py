"""A disk that is full, for real: a file system of a few pages, in memory."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import NoReturn

import pytest
from tests.engines.conftest import Train, WriteRun
from tests.engines.test_program import PROGRAM, start

from training_schemas.progress import (
    CheckpointRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    StepRecord,
    WarningRecord,
    decode_record,
)
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter

pytestmark = pytest.mark.trainer

# Holds two checkpoints of the adapter below, and not three.
DISK_KIB = 2500
RANK = 64


@pytest.fixture
def small_disk(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A folder on a file system of its own; ``small`` below the test's own folder."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    if mounted.returncode != 0:
        missing(f"cannot mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)


def fill(disk: Path) -> Path:
    """Write a file that leaves nothing free."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(repeat(bytes(4096)))
    return path


def test_a_disk_that_fills_up_costs_no_checkpoint_that_was_written(
    write_run: WriteRun, train: Train, small_disk: Path
) -> None:
    """The run reports why it failed, and another attempt goes on elsewhere."""
    folder = write_run("small/run", checkpoint_every=1, lora_rank=RANK)

    code, records = train(folder)

    failed = records[-1]
    saved = [record for record in records if isinstance(record, CheckpointRecord)]
    assert code == 1
    assert isinstance(failed, FailedRecord)
    assert FailureReason.DISK_FULL == failed.reason
    assert [1, 2] == [record.step for record in saved]
    assert {Path(record.path) for record in saved} == set((folder / "attempt" / "checkpoints").iterdir())

    code, records = train(write_run("again", lora_rank=RANK, max_train_steps=4, resume_from=saved[-1].path))
    assert (0, [3, 4]) == (code, [record.step for record in records if isinstance(record, StepRecord)])


def test_a_run_that_cannot_report_writes_to_stderr(write_run: WriteRun, small_disk: Path) -> None:
    """There is nowhere else to report it."""
    folder = write_run("small/run")
    fill(small_disk)

    with start("-m", PROGRAM, str(folder)) as program:
        _, errors = program.communicate(timeout=60)

    assert program.returncode == 1
    assert errors.endswith(
        "cannot report the failure: [Errno 28] No space left on device\n"
        "cannot write: [Errno 28] No space left on device\n"
    )


def test_a_record_that_was_cut_off_is_completed_before_the_next(small_disk: Path) -> None:
    """A reader sees whole lines, numbered without holes, where space comes free again."""
    with ProgressWriter(small_disk / "progress") as progress:
        progress.phase(Phase.TRAINING)
        filler = fill(small_disk)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as raised:
                progress.write(WarningRecord, message="x" * 10_000)
            assert errno.ENOSPC == raised.value.errno
        filler.unlink()
        progress.write(FailedRecord, reason=FailureReason.DISK_FULL, message="full")

    records = [decode_record(line) for line in (small_disk / "progress").read_bytes().splitlines()]
    assert [1, 2, 3] == [record.sequence for record in records]
    assert [PhaseRecord, WarningRecord, FailedRecord] == [type(record) for record in records]
