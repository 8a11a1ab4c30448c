"""An owned job: from the claim to the settlement, with a trainer in between."""

import asyncio
import time

import msgspec

from training_schemas.events import JobClaimed
from training_schemas.progress import FailureReason
from training_schemas.spec import RunLease, RunSpec
from training_schemas.usage import Usage
from training_worker.attempt import choose_engine, promote, resolve_spec
from training_worker.cards import Card
from training_worker.errors import AttemptError
from training_worker.history import JobHistory
from training_worker.meter import Meter
from training_worker.observations import AttemptEnded, AttemptOutcome, AttemptStarted, Observer
from training_worker.ownership import Owner, Ownership
from training_worker.queued_job import QueuedJob
from training_worker.reporter import Reporter, Speaker
from training_worker.run_folder import RunFolder
from training_worker.runner import Broken, Done, Outcome, Runner, Stopped, trainer_environment
from training_worker.settings import Settings
from training_worker.settlement import Settlement
from training_worker.wishes import Wishes

NOTHING_USED = Usage(gpu_seconds=0.0)


class SlotContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot works with, the same for all of its jobs."""

    card: Card
    settings: Settings
    owner: Owner
    speaker: Speaker
    observe: Observer


class OwnedJob:
    """One job that is ours, on one card."""

    def __init__(self, queued: QueuedJob, ownership: Ownership, wishes: Wishes, context: SlotContext) -> None:
        self._queued = queued
        self._ownership = ownership
        self._wishes = wishes
        self._card = context.card
        self._settings = context.settings
        self._owner = context.owner
        self._observe = context.observe
        self._reporter = Reporter(context.speaker, queued.job_id, ownership.attempt)
        self._folder: RunFolder | None = None

    async def run(self) -> None:
        """Train and settle. Returns when nothing of the job is left with this worker."""
        training_type = self._queued.plan.training_type
        self._observe(AttemptStarted(training_type=training_type))
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(self._reporter.run(), name="reporter")
            holding = group.create_task(self._hold(), name="hold")
            outcome = await self._train()
            self._ownership.let_go()
            end = AttemptOutcome.SUPERSEDED
            if await holding:
                settlement = Settlement(self._queued, self._ownership, self._wishes, self._reporter)
                end = await settlement.settle(outcome, self._owner.link)
            publishing.cancel()
        self._observe(AttemptEnded(training_type=training_type, outcome=end, usage=outcome.usage))
        if self._folder is not None:
            await asyncio.to_thread(self._folder.remove)

    async def _hold(self) -> bool:
        ours = await self._ownership.hold(self._renewed)
        if not ours:
            self._wishes.end("superseded")
        return ours

    def _renewed(self, deadline: float) -> None:
        if self._folder is not None:
            self._folder.write_lease(self._lease(deadline))

    def _lease(self, deadline: float) -> RunLease:
        return RunLease(deadline=deadline, max_isolation=self._settings.max_isolation)

    async def _train(self) -> Outcome:
        if self._ownership.before.cancel_requested:
            self._wishes.cancel()
        if self._wishes.stop.is_set():
            return Stopped(step=saved_step(self._ownership.before), usage=NOTHING_USED)
        try:
            spec, folder = await asyncio.to_thread(self._prepare)
        except AttemptError as error:
            return broken(error, NOTHING_USED)
        self._folder = folder
        outcome = await self._run_trainer(spec, folder)
        return await self._promote(spec, outcome) if isinstance(outcome, Done) else outcome

    async def _promote(self, spec: RunSpec, done: Done) -> Outcome:
        try:
            await asyncio.to_thread(promote, self._queued.job, spec, done.record)
        except AttemptError as error:
            return broken(error, done.usage)
        return done

    def _prepare(self) -> tuple[RunSpec, RunFolder]:
        before = self._ownership.before
        spec = resolve_spec(self._queued, self._ownership.attempt, before, self._card, self._settings)
        try:
            return spec, RunFolder.create(self._settings.state_dir, spec, self._lease(self._ownership.deadline))
        except OSError as error:
            raise AttemptError(FailureReason.OUTPUT_INVALID, f"cannot make run folder: {error}") from None

    async def _run_trainer(self, spec: RunSpec, folder: RunFolder) -> Outcome:
        name, engine = choose_engine(self._queued.job, self._settings)
        resumed = saved_step(self._ownership.before) if spec.resume_from is not None else 0
        self._reporter.emit(
            JobClaimed,
            training_type=spec.training_type,
            gpu=self._card.describe(),
            engine=name,
            resume_step=resumed,
        )
        runner = Runner(
            folder,
            Meter(self._card.usd_per_hour, clock=time.monotonic),
            self._reporter,
            stop=self._wishes.stop,
            checkpoint_saved=self._ownership.checkpoint_saved,
        )
        return await runner.run(
            engine.command,
            trainer_environment(self._card),
            grace=self._settings.stop_grace,
            saved_step=resumed,
        )


def broken(error: AttemptError, usage: Usage) -> Broken:
    """The outcome of an attempt that could not go on."""
    return Broken(reason=error.reason, message=error.message, faults=error.faults, usage=usage)


def saved_step(before: JobHistory) -> int:
    """The step of the last checkpoint that the ledger knows; 0 where there is none."""
    return before.checkpoints[-1].step if before.checkpoints else 0
