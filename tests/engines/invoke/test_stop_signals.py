"""What the daemon asks of a run of the engine ``invoke``: to stop, and what else."""

import os
import signal
from pathlib import Path

import msgspec
import pytest
from tests.engines.conftest import read_records

from training_schemas.progress import (
    StoppedRecord,
    WarningRecord,
)
from training_schemas.spec import LEASE_FILE, PROGRESS_FILE, REQUESTS_FILE, RunLease
from training_worker.engines.common.protocol.failures import TrainingStopped
from training_worker.engines.invoke.progress_writer import ProgressWriter
from training_worker.engines.invoke.stop_signals import Control

pytestmark = pytest.mark.trainer


def test_requests_are_taken_once_and_only_when_whole(tmp_path: Path) -> None:
    """What cannot be read is a warning each."""
    control = Control(tmp_path, ProgressWriter(tmp_path / PROGRESS_FILE))
    path = tmp_path / REQUESTS_FILE
    assert control.take_requests() == set()
    path.write_bytes(b'{"request": "sample"}\n{"request": "sample"}\n\xff\n[]\n{"request": []}\n{"request": "check')
    assert {"sample"} == control.take_requests()
    with path.open("ab") as file:
        file.write(b'point"}\n')
    assert {"checkpoint"} == control.take_requests()
    assert control.take_requests() == set()
    assert [WarningRecord] * 3 == [type(record) for record in read_records(tmp_path)]


def test_a_lease_is_looked_at_once_a_second(tmp_path: Path) -> None:
    """And what cannot be read is none."""
    now = [100.0]
    control = Control(tmp_path, ProgressWriter(tmp_path / PROGRESS_FILE), clock=lambda: now[0])
    (tmp_path / LEASE_FILE).write_text("{")
    assert control.why_stop() is None
    (tmp_path / LEASE_FILE).write_bytes(msgspec.json.encode(RunLease(deadline=90, max_isolation=5)))
    now[0] += 0.5
    assert control.why_stop() is None
    now[0] += 0.5
    assert control.why_stop() == "orphan"


def test_sigterm_ends_the_program_at_once_where_no_step_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, and while a record is being written, it waits for the next step's end."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    records = ProgressWriter(tmp_path / PROGRESS_FILE)
    control = Control(tmp_path, records)
    control.clean_up = lambda: left.append(-1)
    control.step = 4
    control._on_signal(signal.SIGTERM, None)
    control.saved_step, records.busy = 4, True
    control._on_signal(signal.SIGTERM, None)
    assert [] == left
    with pytest.raises(TrainingStopped):
        control.check()
    records.busy = False
    control._on_signal(signal.SIGTERM, None)

    assert [-1, 3] == left
    stopped = read_records(tmp_path)[-1]
    assert isinstance(stopped, StoppedRecord)
    assert (4, "signal") == (stopped.step, stopped.why)
