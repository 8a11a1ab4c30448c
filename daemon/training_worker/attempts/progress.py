"""The reader of a trainer's progress: publishes its records as events, and keeps the attempt's state."""

import asyncio
import math
from collections.abc import Callable

import msgspec
import structlog

from training_schemas.events import JobCheckpoint, JobDataset, JobPhase, JobProgress, JobSample, JobWarning
from training_schemas.ledger import CheckpointSaved
from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    DatasetRecord,
    DoneRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    SampleRecord,
    StepRecord,
    StoppedRecord,
    WarningRecord,
    decode_record,
)
from training_worker.attempts.event_outbox import EventOutbox
from training_worker.attempts.timings import Timings
from training_worker.attempts.usage import UsageMeter
from training_worker.errors import AttemptError
from training_worker.ownership.ownership import Ownership
from training_worker.runs.file_tail import follow_lines
from training_worker.runs.run_directory import RunDirectory

log = structlog.get_logger()


class ProgressReader:
    """Follows one attempt's progress file.

    What an earlier daemon has published is read as well, and not published again. ``phase_began`` is set with each
    phase, and ``alarm`` when the trainer must be stopped, for the reason in ``trouble``. Checkpoints of an engine that
    never ``resumes`` from one are published, but count as nothing saved.
    """

    def __init__(  # noqa: PLR0913 - what it reads, and all that it reports to
        self,
        folder: RunDirectory,
        usage: UsageMeter,
        outbox: EventOutbox,
        ownership: Ownership,
        timings: Timings,
        *,
        saved_step: int,
        resumes: bool = True,
        kept: dict[str, object] | None = None,
    ) -> None:
        self._folder = folder
        self._usage = usage
        self._outbox = outbox
        self._ownership = ownership
        self._timings = timings
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self._last_step_at: float | None = None
        self.phase = Phase.STARTING
        self.phase_began = asyncio.Event()
        self.saved_step = saved_step
        self._resumes = resumes
        self._kept = kept
        self.last: AnyRecord | None = None
        self.last_at = self._clock()
        self.longest_step = 0.0
        self.alarm = asyncio.Event()
        self.trouble: AttemptError | None = None

    def raise_alarm(self, reason: FailureReason, message: str) -> None:
        """Have the trainer stopped."""
        if self.trouble is None:
            log.warning("alarm", reason=reason, message=message)
            self.trouble = AttemptError(reason, message)
            self.alarm.set()

    async def follow(self, ended: asyncio.Event) -> None:
        """Publish all records, until ``ended`` is set and the file is read to its end."""
        async for line, offset in follow_lines(self._folder.progress, ended):
            try:
                record = decode_record(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("record_unreadable", error=str(error), line=line[:200])
                continue
            self._apply(record)
            new = not self._outbox.has_published(offset)
            self._timings.apply(record, new=new)
            if new:
                self._publish(record, offset)

    def _apply(self, record: AnyRecord) -> None:
        self.last = record
        self.last_at = self._clock()
        match record:
            case PhaseRecord():
                self.phase, self._last_step_at = record.phase, None
                self.phase_began.set()
            case StepRecord():
                self._apply_step(record)
            case CheckpointRecord() if self._resumes:
                self.saved_step = record.step
                self._usage.kept(record.time)
                self._ownership.note(self._entry(record))
            case _:
                pass

    def _apply_step(self, record: StepRecord) -> None:
        self._usage.step(record.step, record.time)
        if self._last_step_at is not None:
            self.longest_step = max(self.longest_step, record.time - self._last_step_at)
        self._last_step_at = record.time
        if record.loss is None or not math.isfinite(record.loss):
            message = f"cannot go on: the loss of step {record.step} is not finite"
            self.raise_alarm(FailureReason.LOSS_NOT_FINITE, message)

    def _publish(self, record: AnyRecord, offset: int) -> None:
        emit = self._outbox.emit
        match record:
            case PhaseRecord():
                emit(JobPhase, upto=offset, phase=record.phase, total=record.total)
            case StepRecord(loss=float()):
                self._report_step(record, offset)
            case CheckpointRecord():
                if self._resumes:
                    self._outbox.write(self._entry(record))
                emit(JobCheckpoint, upto=offset, step=record.step, path=record.path)
            case SampleRecord():
                emit(JobSample, upto=offset, step=record.step, path=record.path, prompt=record.prompt)
            case DatasetRecord():
                emit(JobDataset, upto=offset, summary=record.summary)
            case WarningRecord():
                emit(JobWarning, upto=offset, message=record.message)
            case StepRecord() | DoneRecord() | StoppedRecord() | FailedRecord():
                pass  # part of the outcome, once the process has ended too

    def _entry(self, record: CheckpointRecord) -> CheckpointSaved:
        usage = self._usage.usage()
        return self._ownership.entry(
            CheckpointSaved, step=record.step, path=record.path, usage=usage, settings=self._kept
        )

    def _report_step(self, record: StepRecord, offset: int) -> None:
        self._outbox.emit(
            JobProgress,
            upto=offset,
            phase=self.phase,
            step=record.step,
            total_steps=record.total_steps,
            loss=record.loss,
            learning_rate=record.learning_rate,
            usage=self._usage.usage(),
            steps_per_minute=self._usage.steps_per_minute(),
            seconds_left=self._usage.seconds_left(record.total_steps - record.step),
        )
