"""The runner: one attempt's trainer, from its start to its end, and what it says on the way.

It knows nothing of queues. It is told to stop by an event, and says how the attempt ended by an `Outcome`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from training_schemas.events import JobCheckpoint, JobPhase, JobProgress, JobSample, JobWarning
from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    DoneRecord,
    FailedRecord,
    FailureReason,
    Fault,
    Phase,
    PhaseRecord,
    SampleRecord,
    StepRecord,
    StoppedRecord,
    WarningRecord,
    decode_record,
)
from training_schemas.usage import Usage
from training_worker.cards import Card
from training_worker.meter import Meter
from training_worker.process import Child, Exit
from training_worker.reporter import Reporter
from training_worker.run_folder import RunFolder
from training_worker.tail import follow_lines

log = structlog.get_logger()

# What a trainer needs of the daemon's environment. All else stays here, secrets first of all.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer ended well."""

    record: DoneRecord
    usage: Usage


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer stopped before its end; a later attempt can go on after ``step`` steps."""

    step: int
    usage: Usage


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer failed."""

    reason: FailureReason
    message: str
    faults: list[Fault] = []
    output_tail: list[str] = []
    usage: Usage = Usage(gpu_seconds=0.0)


Outcome = Done | Stopped | Broken
CheckpointSaved = Callable[[int, str], Awaitable[None]]


def trainer_environment(card: Card) -> dict[str, str]:
    """The environment of a trainer: its one card and no other, no network for model hubs, none of our settings."""
    own = {
        "CUDA_VISIBLE_DEVICES": "" if card.simulated else card.uuid,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | own


class Runner:
    """One attempt's trainer.

    ``checkpoint_saved`` is awaited with the step and folder of each checkpoint. When ``stop`` is set, the trainer is
    asked to save one and end.
    """

    def __init__(
        self,
        folder: RunFolder,
        meter: Meter,
        reporter: Reporter,
        *,
        stop: asyncio.Event,
        checkpoint_saved: CheckpointSaved,
    ) -> None:
        self._folder = folder
        self._meter = meter
        self._reporter = reporter
        self._checkpoint_saved = checkpoint_saved
        self._stop = stop
        self._phase = Phase.STARTING
        self._saved_step = 0
        self._last: AnyRecord | None = None

    async def run(self, command: list[str], env: dict[str, str], *, grace: float, saved_step: int) -> Outcome:
        """Start the trainer, follow it, and judge how it ended.

        It gets ``grace`` seconds to stop when asked to; ``saved_step`` is that of the checkpoint it goes on from, or 0.
        """
        self._saved_step = saved_step
        try:
            child = Child.start(
                [*command, str(self._folder.path)], env=env, stdout=self._folder.stdout, stderr=self._folder.stderr
            )
        except OSError as error:
            return Broken(reason=FailureReason.CONFIG_INVALID, message=f"cannot start trainer: {error}")
        log.info("trainer_started", pid=child.pid, folder=str(self._folder.path))
        ended = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(ended), name="tail")
                end = await self._wait(child, grace)
                self._meter.stop()
                ended.set()
        finally:
            child.kill()
        log.info("trainer_ended", pid=child.pid, exit=str(end))
        return self._judge(end)

    async def _wait(self, child: Child, grace: float) -> Exit:
        waiting = asyncio.create_task(child.wait(), name="child-wait")
        stopping = asyncio.create_task(self._stop.wait(), name="child-stop")
        try:
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else await child.stop(grace)
        finally:
            waiting.cancel()
            stopping.cancel()

    async def _follow(self, ended: asyncio.Event) -> None:
        async for line in follow_lines(self._folder.progress, ended):
            try:
                record = decode_record(line)
            except msgspec.MsgspecError as error:
                log.warning("record_unreadable", error=str(error), line=line[:200])
                continue
            self._last = record
            await self._tell(record)

    async def _tell(self, record: AnyRecord) -> None:
        emit = self._reporter.emit
        match record:
            case PhaseRecord():
                self._phase = record.phase
                emit(JobPhase, phase=record.phase, total=record.total)
            case StepRecord():
                self._tell_step(record)
            case CheckpointRecord():
                self._saved_step = record.step
                await self._checkpoint_saved(record.step, record.path)
                emit(JobCheckpoint, step=record.step, path=record.path)
            case SampleRecord():
                emit(JobSample, step=record.step, path=record.path, prompt=record.prompt)
            case WarningRecord():
                emit(JobWarning, message=record.message)
            case DoneRecord() | StoppedRecord() | FailedRecord():
                pass  # the outcome, once the process has ended too

    def _tell_step(self, record: StepRecord) -> None:
        self._meter.step(record.step, record.time)
        self._reporter.emit(
            JobProgress,
            phase=self._phase,
            step=record.step,
            total_steps=record.total_steps,
            loss=record.loss,
            learning_rate=record.learning_rate,
            usage=self._meter.usage(),
            steps_per_minute=self._meter.steps_per_minute(),
            seconds_left=self._meter.seconds_left(record.total_steps - record.step),
        )

    def _judge(self, end: Exit) -> Outcome:
        usage = self._meter.usage()
        match self._last:
            case DoneRecord() if end.status == 0:
                return Done(record=self._last, usage=usage)
            case FailedRecord(reason=reason, message=message, faults=faults):
                tail = self._folder.output_tail()
                return Broken(reason=reason, message=message, faults=faults, output_tail=tail, usage=usage)
            case StoppedRecord():
                return Stopped(step=self._saved_step, usage=usage)
            case _ if self._stop.is_set():
                return Stopped(step=self._saved_step, usage=usage)
            case _:
                return Broken(
                    reason=FailureReason.TRAINER_CRASHED,
                    message=f"trainer ended without a word in phase {self._phase}: {end}",
                    output_tail=self._folder.output_tail(),
                    usage=usage,
                )
