"""The progress file's writer."""

from pathlib import Path

import pytest

from training_schemas.progress import Phase, PhaseRecord, WarningRecord, decode_record
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter

pytestmark = pytest.mark.trainer


def test_records_are_whole_lines_numbered_from_one(tmp_path: Path) -> None:
    """The daemon counts on both when it reads the file while it grows."""
    with ProgressWriter(tmp_path / "progress", clock=lambda: 12.5) as progress:
        progress.phase(Phase.TRAINING, total=3)
        progress.write(WarningRecord, message="two\nlines")

    expected = [
        PhaseRecord(sequence=1, time=12.5, phase=Phase.TRAINING, total=3),
        WarningRecord(sequence=2, time=12.5, message="two\nlines"),
    ]
    assert expected == [decode_record(line) for line in (tmp_path / "progress").read_bytes().splitlines()]


def test_a_run_folder_serves_one_run(tmp_path: Path) -> None:
    """A second run in the same folder would number its records from one again."""
    with ProgressWriter(tmp_path / "progress") as progress:
        progress.phase(Phase.STARTING)

    with pytest.raises(FileExistsError, match="started before"):
        ProgressWriter(tmp_path / "progress")
