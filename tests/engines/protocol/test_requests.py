"""What the daemon asks a run for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engines.conftest import Train, WriteRun
from tests.engines.watching import WatchedProgress

from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    DoneRecord,
    Phase,
    PhaseRecord,
    ProgressRecord,
    SampleRecord,
    StepRecord,
    WarningRecord,
    decode_record,
)
from training_schemas.spec import REQUESTS_FILE, RequestLine, RunRequest
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.protocol.requests import RequestReader

pytestmark = pytest.mark.trainer

CHECKPOINT = msgspec.json.encode(RequestLine(request=RunRequest.CHECKPOINT)) + b"\n"
SAMPLE = msgspec.json.encode(RequestLine(request=RunRequest.SAMPLE)) + b"\n"


def append(path: Path, content: bytes) -> None:
    """Append to a file, as the daemon does."""
    with path.open("ab") as file:
        file.write(content)


def asking(folder: Path, requests: dict[int, bytes]) -> Callable[[Path], ProgressWriter]:
    """Make a writer for a run that is asked for something after each of some steps."""

    def ask(record: type[ProgressRecord], fields: dict[str, Any]) -> None:
        if record is StepRecord and fields["step"] in requests:
            append(folder / REQUESTS_FILE, requests[fields["step"]])

    return partial(WatchedProgress, on_record=ask)


def reported(records: list[AnyRecord]) -> list[Phase | tuple[str, int]]:
    """List what a run reports from training on: phases, steps, checkpoints and samples."""
    short: list[Phase | tuple[str, int]] = []
    for record in records:
        match record:
            case PhaseRecord():
                short.append(record.phase)
            case StepRecord() | CheckpointRecord() | SampleRecord():
                short.append((type(record).__name__, record.step))
            case _:
                pass
    return short[short.index(Phase.TRAINING) :]


def warnings(records: list[AnyRecord]) -> list[str]:
    """List the messages of all warnings."""
    return [record.message for record in records if isinstance(record, WarningRecord)]


@pytest.fixture
def progress(tmp_path: Path) -> ProgressWriter:
    """Where the reader's warnings go."""
    return ProgressWriter(tmp_path / "progress")


def test_each_request_is_read_once_when_its_line_is_whole(tmp_path: Path, progress: ProgressWriter) -> None:
    """The file may not be there yet, and may grow at any time."""
    path = tmp_path / "requests"
    reader = RequestReader(path)
    taken = [reader.take(progress)]
    for part in [CHECKPOINT + CHECKPOINT + SAMPLE[:5], b"", SAMPLE[5:], b"", CHECKPOINT]:
        append(path, part)
        taken.append(reader.take(progress))

    assert [set(), {RunRequest.CHECKPOINT}, set(), {RunRequest.SAMPLE}, set(), {RunRequest.CHECKPOINT}] == taken


@pytest.mark.parametrize("line", [b"", b"checkpoint", b'{"request":"dance"}', b'{"request":"\xff"}', b"[" * 5000])
def test_a_line_that_cannot_be_read_is_warned_of_once(tmp_path: Path, progress: ProgressWriter, line: bytes) -> None:
    """What stands around it is honoured all the same."""
    reader = RequestReader(tmp_path / "requests")
    append(tmp_path / "requests", CHECKPOINT + line + b"\n" + SAMPLE)

    assert {RunRequest.CHECKPOINT, RunRequest.SAMPLE} == reader.take(progress)
    assert set() == reader.take(progress)

    (written,) = (tmp_path / "progress").read_bytes().splitlines()
    warning = decode_record(written)
    assert isinstance(warning, WarningRecord)
    assert warning.message.startswith("cannot read request ")
    assert len(warning.message) < 500


def test_requests_are_honoured_after_the_step(write_run: WriteRun, train: Train) -> None:
    """Several of a kind are one, and a checkpoint of that very step is not written again."""
    folder = write_run(max_train_steps=5, checkpoint_every=4, validation_prompts=["a robot"])
    append(folder / REQUESTS_FILE, CHECKPOINT)

    code, records = train(folder, writer=asking(folder, {2: SAMPLE + CHECKPOINT + SAMPLE, 4: CHECKPOINT, 5: SAMPLE}))

    assert code == 0
    assert [
        *[Phase.TRAINING, ("StepRecord", 1), Phase.CHECKPOINTING, ("CheckpointRecord", 1)],
        *[Phase.TRAINING, ("StepRecord", 2), Phase.CHECKPOINTING, ("CheckpointRecord", 2)],
        *[Phase.SAMPLING, ("SampleRecord", 2), Phase.TRAINING, ("StepRecord", 3)],
        *[("StepRecord", 4), Phase.CHECKPOINTING, ("CheckpointRecord", 4), Phase.TRAINING],
        *[("StepRecord", 5), Phase.SAMPLING, ("SampleRecord", 5), Phase.TRAINING, Phase.EXPORTING],
    ] == reported(records)
    done = records[-1]
    assert isinstance(done, DoneRecord)
    assert [0, 2, 5] == [int(artifact.path[13:21]) for artifact in done.artifacts if artifact.kind == "sample"]


def test_what_cannot_be_honoured_is_warned_of(write_run: WriteRun, train: Train) -> None:
    """Training goes on."""
    folder = write_run(max_train_steps=1)

    code, records = train(folder, writer=asking(folder, {1: SAMPLE}))

    assert code == 0
    assert ["cannot draw samples: the job has no validation prompts"] == warnings(records)
