"""Durations of phases and steps, by the trainer's own clock."""

import pytest
from tests.support.runs import GPU

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    StepRecord,
    StoppedRecord,
)
from training_worker.attempts.timings import Timings
from training_worker.observations import Observation, PhaseEnded, ProgressMade, StepTaken

FLUX = TrainingType.FLUX_LORA


def phase(kind: Phase, at: float) -> PhaseRecord:
    """A phase began."""
    return PhaseRecord(sequence=1, time=at, phase=kind)


def step(at: float, loss: float | None = 0.5) -> StepRecord:
    """A step was completed."""
    return StepRecord(sequence=1, time=at, step=1, total_steps=9, loss=loss, learning_rate=1e-4)


def measured(*records: AnyRecord, published: int = 0) -> list[Observation]:
    """What is observed of these records, of which the first so many were published before; progress left out."""
    observed: list[Observation] = []
    timings = Timings(observed.append, FLUX, GPU.uuid)
    for number, record in enumerate(records):
        timings.apply(record, new=number >= published)
    return [one for one in observed if not isinstance(one, ProgressMade)]


def ended(kind: Phase, seconds: float) -> PhaseEnded:
    """A phase lasted so long."""
    return PhaseEnded(training_type=FLUX, phase=kind, seconds=seconds)


def step_observed(seconds: float | None, loss: float | None = 0.5) -> StepTaken:
    """A step lasted so long."""
    return StepTaken(training_type=FLUX, gpu=GPU.uuid, loss=loss, seconds=seconds)


@pytest.mark.parametrize(
    "last",
    [
        phase(Phase.TRAINING, 15.0),
        StoppedRecord(sequence=2, time=15.0, step=0, why="requested"),
        FailedRecord(sequence=2, time=15.0, reason=FailureReason.DISK_FULL, message="no space"),
    ],
)
def test_a_phase_ends_with_the_next_one_or_with_the_trainer(last: AnyRecord) -> None:
    """Its duration is that between the two records."""
    assert measured(phase(Phase.LOADING_MODEL, 10.0), last) == [ended(Phase.LOADING_MODEL, 5.0)]


def test_a_step_is_measured_from_the_one_before() -> None:
    """Not the first one, and none that a checkpoint came before."""
    records: list[AnyRecord] = [
        phase(Phase.TRAINING, 10.0),
        step(12.0),
        step(12.5),
        phase(Phase.CHECKPOINTING, 13.0),
        CheckpointRecord(sequence=1, time=14.0, step=2, path="/models/checkpoint-2"),
        phase(Phase.TRAINING, 14.0),
        step(15.0),
    ]

    assert measured(*records) == [
        step_observed(None),
        step_observed(0.5),
        ended(Phase.TRAINING, 3.0),
        ended(Phase.CHECKPOINTING, 1.0),
        step_observed(None),
    ]


def test_what_an_earlier_daemon_has_published_is_not_counted_again() -> None:
    """And what comes after it is measured from there."""
    records: list[AnyRecord] = [phase(Phase.STARTING, 1.0), phase(Phase.TRAINING, 10.0), step(12.0), step(12.5)]

    assert measured(*records, published=3) == [step_observed(0.5)]


def test_a_loss_that_is_no_number_is_none() -> None:
    """And a clock that was set back makes no time negative."""
    assert measured(step(12.0, loss=float("nan")), step(11.0)) == [step_observed(None, loss=None), step_observed(0.0)]
