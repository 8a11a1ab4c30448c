"""The timings of one attempt: durations of phases and steps, from the records of its trainer."""

import math

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    AnyRecord,
    DoneRecord,
    FailedRecord,
    Phase,
    PhaseRecord,
    StepRecord,
    StoppedRecord,
)
from training_worker.observations import Observer, PhaseEnded, ProgressMade, StepTaken


class Timings:
    """Follows the records by their own times, so that a daemon that re-attaches to the trainer continues them."""

    def __init__(self, observe: Observer, training_type: TrainingType, gpu: str) -> None:
        self._observe = observe
        self._training_type = training_type
        self._gpu = gpu
        self._phase: tuple[Phase, float] | None = None
        self._last_step: float | None = None

    def apply(self, record: AnyRecord, *, new: bool) -> None:
        """Apply the next record; one that is not ``new`` was published, and counted, by an earlier daemon."""
        if new:
            self._observe(ProgressMade(gpu=self._gpu, time=record.time))
        match record:
            case PhaseRecord():
                self._end_phase(record.time, new=new)
                self._phase = (record.phase, record.time)
            case StepRecord():
                self._apply_step(record, new=new)
            case DoneRecord() | StoppedRecord() | FailedRecord():
                self._end_phase(record.time, new=new)
            case _:
                pass

    def _apply_step(self, record: StepRecord, *, new: bool) -> None:
        seconds = None if self._last_step is None else max(0.0, record.time - self._last_step)
        self._last_step = record.time
        loss = record.loss if record.loss is not None and math.isfinite(record.loss) else None
        if new:
            self._observe(StepTaken(training_type=self._training_type, gpu=self._gpu, loss=loss, seconds=seconds))

    def _end_phase(self, time: float, *, new: bool) -> None:
        ended, self._phase, self._last_step = self._phase, None, None
        if ended is not None and new:
            phase, began = ended
            seconds = max(0.0, time - began)
            self._observe(PhaseEnded(training_type=self._training_type, phase=phase, seconds=seconds))
