"""The progress file of the engine ``invoke``."""

import os
from pathlib import Path

import pytest
from tests.engines.conftest import read_records

from training_schemas.progress import (
    WarningRecord,
)
from training_schemas.spec import PROGRESS_FILE
from training_worker.engines.invoke.progress_writer import ProgressWriter

pytestmark = pytest.mark.trainer


def test_a_record_that_was_half_written_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full for a moment."""
    records, write = ProgressWriter(tmp_path / PROGRESS_FILE), os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(OSError, match="No space left"):
            records.warn("first")
    records.warn("second")

    assert [(1, "first"), (2, "second")] == [
        (record.sequence, record.message) for record in read_records(tmp_path) if isinstance(record, WarningRecord)
    ]
    with pytest.raises(FileExistsError):
        ProgressWriter(tmp_path / PROGRESS_FILE)
