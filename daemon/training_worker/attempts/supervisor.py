"""The supervisor: waits for the end of one attempt's trainer, stops it where it must, and judges how it ended.

It knows nothing of queues. Another daemon may have started the trainer.
"""

import asyncio

import msgspec
import structlog

from training_schemas.progress import DoneRecord, FailedRecord, FailureReason, Phase, StoppedRecord
from training_worker.asyncio_tools import first_of
from training_worker.attempts.control import ControlRequests
from training_worker.attempts.outcome import Broken, Detached, Done, Outcome, Stopped
from training_worker.attempts.progress import ProgressReader
from training_worker.attempts.usage import UsageMeter
from training_worker.runs.child_process import UNKNOWN, ChildProcess, Exit
from training_worker.runs.run_directory import RunDirectory

# A step that takes longer than the bound is no stall, if others took nearly as long.
STALLED_STEPS = 10

# How often the sizes of the trainer's output files are checked (seconds).
OUTPUT_CHECKS = 10.0

log = structlog.get_logger()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a trainer: seconds to stop in, and without a new record; and its cost in US dollars."""

    stop_grace: float
    stall_preparing: float
    stall_training: float
    budget_usd: float | None


class Supervisor:
    """Follows one attempt's trainer to its end."""

    def __init__(
        self,
        folder: RunDirectory,
        usage: UsageMeter,
        progress: ProgressReader,
        control: ControlRequests,
        limits: Limits,
    ) -> None:
        self._folder = folder
        self._usage = usage
        self._progress = progress
        self._control = control
        self._limits = limits

    async def follow(self, child: ChildProcess) -> Outcome | Detached:
        """Follow a running trainer to its end."""
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._progress.follow(ended), name="tail")
            watching = group.create_task(self._watch(), name="watchdog")
            shortening = group.create_task(self._shorten_output(), name="output")
            end = await self._end_of(child)
            self._usage.stop()
            watching.cancel()
            shortening.cancel()
            ended.set()
        if end is None:
            child.leave()
            return Detached()
        log.info("trainer_ended", pid=child.pid, exit=str(end))
        return self._judge(end)

    async def _shorten_output(self) -> None:
        while True:
            await asyncio.sleep(OUTPUT_CHECKS)
            try:
                await asyncio.to_thread(self._folder.shorten_output)
            except OSError as error:
                log.warning("output_not_shortened", error=str(error))

    async def look_back(self, last_sign: float, *, rebooted: bool) -> Outcome:
        """Judge a trainer that ended while no daemon watched, and gave its last sign of life then (unix seconds).

        If the host was ``rebooted`` meanwhile, its end was no fault of its own.
        """
        self._usage.stop(last_sign)
        ended = asyncio.Event()
        ended.set()
        await self._progress.follow(ended)
        outcome = self._judge(UNKNOWN)
        if rebooted and isinstance(outcome, Broken) and outcome.reason is FailureReason.TRAINER_CRASHED:
            return msgspec.structs.replace(
                outcome, reason=FailureReason.WORKER_LOST, message="the host went down under the trainer"
            )
        return outcome

    async def _end_of(self, child: ChildProcess) -> Exit | None:
        control = self._control
        await first_of(child.ended, control.detach, control.stop, self._progress.alarm)
        if child.ended.is_set():
            return await child.wait()
        if control.detach.is_set():
            return None
        try:
            return await child.stop(self._limits.stop_grace, control.abort)
        except TimeoutError:
            # The trainer hangs in the kernel, as under a broken driver. The job must not wait for it.
            log.error("trainer_cannot_be_killed", pid=child.pid)  # noqa: TRY400 - the traceback adds nothing
            return UNKNOWN

    async def _watch(self) -> None:
        """Raise the alarm when the trainer has stalled or has used up its budget."""
        moved = self._progress.phase_began
        while (left := min(self._until_stalled(), self._until_spent())) > 0:
            moved.clear()
            await first_of(moved, timeout=left)
        if self._until_spent() <= 0:
            message = f"stopped: the job has cost its limit of {self._limits.budget_usd:g} USD for this attempt"
            self._progress.raise_alarm(FailureReason.BUDGET_EXHAUSTED, message)
        else:
            message = f"stopped: nothing new for {self._stall_bound():.0f} s in phase {self._progress.phase}"
            self._progress.raise_alarm(FailureReason.STALLED, message)

    def _until_stalled(self) -> float:
        return self._progress.last_at + self._stall_bound() - asyncio.get_running_loop().time()

    def _stall_bound(self) -> float:
        if self._progress.phase is not Phase.TRAINING:
            return self._limits.stall_preparing
        return max(self._limits.stall_training, STALLED_STEPS * self._progress.longest_step)

    def _until_spent(self) -> float:
        if self._limits.budget_usd is None:
            return float("inf")
        left = self._usage.seconds_until(self._limits.budget_usd)
        return float("inf") if left is None else left

    @property
    def _asked_to_stop(self) -> bool:
        return self._control.stop.is_set() or self._progress.alarm.is_set()

    def _judge(self, end: Exit) -> Outcome:
        progress, usage = self._progress, self._usage.usage_if_lost()
        match progress.last:
            # Its end may have been caused by our own late signal.
            case DoneRecord() if end.status == 0 or end == UNKNOWN or self._asked_to_stop:
                return Done(
                    record=progress.last, usage=self._usage.usage(), seconds_per_step=self._usage.seconds_per_step()
                )
            case FailedRecord(reason=reason, message=message, faults=faults):
                tail = self._folder.output_tail()
                return Broken(reason=reason, message=message, faults=faults, output_tail=tail, usage=usage)
            case _ if progress.trouble is not None:
                return msgspec.structs.replace(
                    Broken.because_of(progress.trouble, usage), output_tail=self._folder.output_tail()
                )
            case StoppedRecord():
                return Stopped(step=progress.saved_step, usage=usage)
            case _ if self._control.stop.is_set():
                return Stopped(step=progress.saved_step, usage=usage)
            case _:
                return Broken(
                    reason=FailureReason.TRAINER_CRASHED,
                    message=f"trainer ended without reporting a result in phase {progress.phase}: {end}",
                    output_tail=self._folder.output_tail(),
                    usage=usage,
                )
