"""SIGTERM in each phase of a run."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.engines.conftest import Train, WriteRun
from tests.engines.watching import WatchedProgress

from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    Phase,
    PhaseRecord,
    ProgressRecord,
    StoppedRecord,
)

pytestmark = pytest.mark.trainer


class SignalIn:
    """Sends a SIGTERM when a phase begins for the given time, counted from 1."""

    def __init__(self, phase: Phase, time: int) -> None:
        self._phase = phase
        self._times_left = time

    def __call__(self, record: type[ProgressRecord], fields: dict[str, Any]) -> None:
        if record is PhaseRecord and fields["phase"] is self._phase:
            self._times_left -= 1
            if self._times_left == 0:
                os.kill(os.getpid(), signal.SIGTERM)


def phases_from(records: list[AnyRecord], phase: Phase, time: int) -> list[Phase]:
    """List the phases from the one in which the signal came."""
    phases = [record.phase for record in records if isinstance(record, PhaseRecord)]
    first = [i for i, name in enumerate(phases) if name is phase][time - 1]
    return phases[first:]


@pytest.mark.parametrize(
    "phase",
    [
        Phase.STARTING,
        Phase.CHECKING_DATASET,
        Phase.CACHING_TEXT,
        Phase.CACHING_LATENTS,
        Phase.LOADING_MODEL,
        Phase.TRAINING,
    ],
)
def test_a_stop_before_the_first_step_is_heeded_in_its_phase(write_run: WriteRun, train: Train, phase: Phase) -> None:
    """There is nothing to save."""
    folder = write_run()

    code, records = train(folder, writer=partial(WatchedProgress, on_record=SignalIn(phase, 1)))

    stopped = records[-1]
    assert isinstance(stopped, StoppedRecord)
    assert (3, 0, "signal") == (code, stopped.step, stopped.why)
    assert [phase] == phases_from(records, phase, 1)
    assert not (folder / "attempt" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("phases", "time", "checkpoints"),
    [
        ([Phase.CHECKPOINTING, Phase.TRAINING], 1, [2]),
        ([Phase.SAMPLING, Phase.CHECKPOINTING], 2, [2, 3]),
        ([Phase.EXPORTING, Phase.CHECKPOINTING], 1, [2, 3]),
    ],
)
def test_a_stop_after_some_steps_leaves_a_checkpoint_of_the_last(
    write_run: WriteRun, train: Train, phases: list[Phase], time: int, checkpoints: list[int]
) -> None:
    """One that is there already is not written again."""
    folder = write_run(max_train_steps=3, checkpoint_every=2, validation_prompts=["a robot"])

    code, records = train(folder, writer=partial(WatchedProgress, on_record=SignalIn(phases[0], time)))

    stopped = records[-1]
    assert isinstance(stopped, StoppedRecord)
    assert (3, checkpoints[-1], "signal") == (code, stopped.step, stopped.why)
    assert phases == phases_from(records, phases[0], time)
    saved = [record for record in records if isinstance(record, CheckpointRecord)]
    assert checkpoints == [record.step for record in saved]
    assert all(Path(record.path).is_dir() for record in saved)
