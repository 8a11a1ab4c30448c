"""The runner of an owned job: from the claim to the completion, with one attempt after the other in between."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from training_schemas.events import JobClaimed, JobWarning
from training_schemas.progress import FailureReason
from training_schemas.spec import RunLease
from training_worker.attempts.completion import Closing, Completion, FinalizedAttempt
from training_worker.attempts.control import ControlRequests
from training_worker.attempts.engine_selection import NEVER_RESUMING
from training_worker.attempts.event_outbox import EventOutbox
from training_worker.attempts.outcome import Broken, Detached, Done, Outcome, Stopped
from training_worker.attempts.plan_choice import kept_settings, self_test_rates
from training_worker.attempts.prediction import overruns, predict_here, ratios
from training_worker.attempts.progress import ProgressReader
from training_worker.attempts.result import Account, promote, read_result
from training_worker.attempts.retry_policy import MOST_LOST, too_often_lost
from training_worker.attempts.run_history import resume_point
from training_worker.attempts.run_spec import changes, resolve_spec
from training_worker.attempts.step_rates import StepRates
from training_worker.attempts.supervisor import Limits, Supervisor
from training_worker.attempts.timings import Timings
from training_worker.attempts.usage import UsageMeter
from training_worker.attempts.workloads import workload_of_spec
from training_worker.broker.event_publisher import EventPublisher
from training_worker.errors import AttemptError
from training_worker.gpu.devices import GpuDevice, Room, energy_wh_since, room_on
from training_worker.gpu.nvml import DriverHangsError
from training_worker.ledger.job_history import JobHistory
from training_worker.observations import AttemptEnded, AttemptStarted, JobWaited, Observer, PredictionChecked
from training_worker.ownership.ownership import Owner, Ownership
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.child_process import ChildProcess
from training_worker.runs.environment import trainer_environment
from training_worker.runs.run import Run, RunRecord
from training_worker.runs.run_directory import CLOSING_FILE, Bookmark, RunDirectory
from training_worker.runs.standby import Standby
from training_worker.runs.state_layout import output_folder
from training_worker.settings import Settings
from training_worker.storage.ended_jobs import EndedJob, note_ended
from training_worker.storage.reservations import Reservation, Reservations

# Failures that the GPU may have caused.
SUSPICIOUS = (
    FailureReason.TRAINER_CRASHED,
    FailureReason.STALLED,
    FailureReason.LOSS_NOT_FINITE,
    FailureReason.HOST_UNFIT,
)

# Reads the GPUs of these UUIDs (separated by commas) and returns what is wrong with one, if anything is.
FindFault = Callable[[str], Awaitable[str | None]]

# Whether others hold so much of the GPUs of these UUIDs that a job that needs this many MiB has no room.
IsCrowded = Callable[[str, int], Awaitable[bool]]

log = structlog.get_logger()


class SlotContext(msgspec.Struct, frozen=True, kw_only=True):
    """The context that a slot works with, the same for all of its jobs."""

    device: GpuDevice
    settings: Settings
    owner: Owner
    publisher: EventPublisher
    observe: Observer
    rates: StepRates
    standby: Standby
    reservations: Reservations
    find_fault: FindFault
    is_crowded: IsCrowded


class JobRunner:
    """The training of one owned job on one slot; ``reservation`` is its space on the host's disks.

    ``found`` is the run that an earlier daemon left, if one did.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each job has its own
        self,
        queued: QueuedJob,
        ownership: Ownership,
        control: ControlRequests,
        context: SlotContext,
        reservation: Reservation,
        found: Run | None = None,
    ) -> None:
        self._queued = queued
        self._ownership = ownership
        self._control = control
        self._context = context
        self._reservation = reservation
        self._device = context.device
        self._settings = context.settings
        self._found = found
        self._run: Run | None = found

    async def run(self) -> None:
        """Train the job to its end. Returns when nothing of it is left with this worker, or when it is detached."""
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(self._hold(), name="hold")
            self._report_wait()
            while await self._attempt_again():
                pass
            if self._control.detach.is_set():
                holding.cancel()

    def _report_wait(self) -> None:
        """Report how long the job waited, at its first claim, if its age is known."""
        first = self._found is None and self._ownership.before.attempt == 0
        if first and self._queued.submitted_at > 0:
            waited = max(0.0, time.time() - self._queued.submitted_at)
            self._context.observe(JobWaited(training_type=self._queued.plan.training_type, seconds=waited))

    async def _attempt_again(self) -> bool:
        with bound_contextvars(attempt=self._ownership.attempt):
            return await self._attempt()

    async def _hold(self) -> None:
        if not await self._ownership.hold(self._renewed):
            self._control.end("superseded")

    def _renewed(self, deadline: float) -> None:
        if self._run is not None:
            self._run.folder.write_lease(self._lease(deadline))

    def _lease(self, deadline: float) -> RunLease:
        return RunLease(deadline=deadline, max_isolation=self._settings.max_isolation)

    async def _attempt(self) -> bool:
        """Make one attempt. True if another one follows here."""
        training_type, tier = self._queued.plan.training_type, self._queued.plan.tier
        self._context.observe(AttemptStarted(training_type=training_type, tier=tier, gpu=self._device.uuid))
        found, self._found = self._found, None
        early = None if found is not None else await self._prepare()
        outbox = self._make_outbox()
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(outbox.run(), name="outbox")
            outcome = early or await self._train(outbox, found)
            end = None if isinstance(outcome, Detached) else await self._finalize(outcome, outbox)
            publishing.cancel()
        if end is None:
            return False
        self._context.observe(
            AttemptEnded(
                training_type=training_type,
                tier=tier,
                gpu=self._device.uuid,
                outcome=end.outcome,
                reason=outcome.reason if isinstance(outcome, Broken) else None,
                usage=end.usage,
            )
        )
        await self._clean_up(end)
        return end.again

    def _make_outbox(self) -> EventOutbox:
        folder = None if self._run is None else self._run.folder
        ownership = self._ownership
        return EventOutbox(
            self._context.publisher, ownership.publish, self._queued.job_id, ownership.attempt, Bookmark(folder)
        )

    async def _prepare(self) -> Outcome | None:
        """Make the run; return how the attempt ended if it cannot begin."""
        before = self._ownership.before
        if (result := await asyncio.to_thread(read_result, self._queued.job)) is not None:
            return Done(record=result)
        if before.cancel_requested:
            self._control.cancel()
        if self._control.stop.is_set():
            return Stopped(step=before.saved_step)
        try:
            self._check_limits(before)
            self._run = await asyncio.to_thread(self._make_run, await self._room())
        except AttemptError as error:
            return Broken.because_of(error)
        return None

    def _check_limits(self, before: JobHistory) -> None:
        if too_often_lost(before):
            message = f"given up: {MOST_LOST} attempts ended with their workers, and none of them reported its end"
            raise AttemptError(FailureReason.WORKER_LOST, message)
        limit = self._queued.job.max_cost_usd
        if limit is not None and before.cost_usd >= limit:
            message = f"stopped: earlier attempts have cost {before.cost_usd:.4f} USD of {limit:g}"
            raise AttemptError(FailureReason.BUDGET_EXHAUSTED, message)

    async def _room(self) -> Room:
        try:
            return await asyncio.to_thread(room_on, self._device)
        except DriverHangsError:
            raise AttemptError(FailureReason.HOST_UNFIT, "cannot train: the driver does not answer") from None

    def _make_run(self, room: Room) -> Run:
        ownership, job = self._ownership, self._queued.job
        before = ownership.before
        resolved = resolve_spec(self._queued, ownership.attempt, before, room, self._settings, self._reservation)
        spec, choice = resolved.spec, resolved.choice
        saved = resume_point(before) if spec.resume_from is not None else None
        record = RunRecord(
            job=job,
            submitted_at=self._queued.submitted_at,
            claim_record=ownership.claim_record,
            device=self._device,
            engine=spec.engine,
            changes=changes(self._queued.plan, spec.parameters),
            resumed_step=0 if saved is None else saved.step,
            started_at=time.time(),
            predicted=predict_here(
                workload_of_spec(spec),
                spec.engine,
                self._device,
                self._settings.cards,
                self._context.rates,
                gpu_rates=self_test_rates(self._device, self._settings, spec.engine),
            ),
            energy_j=room.energy_j,
            choices=choice.changes,
            gain=choice.gain if choice.seconds_per_step is not None else None,
        )
        try:
            folder = RunDirectory.create(self._settings.state_dir, spec, self._lease(ownership.deadline), record)
        except OSError as error:
            raise AttemptError(FailureReason.HOST_UNFIT, f"cannot make run folder: {error}") from None
        return Run(folder=folder, spec=spec, record=record, queued=self._queued)

    async def _train(self, outbox: EventOutbox, found: Run | None) -> Outcome | Detached:
        run = self._run
        assert run is not None  # noqa: S101 - prepared, or found
        supervisor = self._make_supervisor(run, outbox)
        if not outbox.started:
            self._announce(run, outbox)
        if run.folder.find(CLOSING_FILE, Closing) is not None:
            # The decision was recorded; events before it may not have been published.
            return await supervisor.look_back(run.last_sign(), rebooted=False)
        self._control.attach(run.folder)
        follow = self._start_trainer if found is None else self._find_trainer
        outcome = await follow(run, supervisor)
        self._control.detached()
        match outcome:
            case Done():
                return await self._promote(run, outcome, outbox)
            case Broken(reason=reason) if reason in SUSPICIOUS:
                return await self._blamed(outcome, run)
            case _:
                return outcome

    async def _blamed(self, outcome: Broken, run: Run) -> Broken:
        """Attribute the failure to the GPU if that is unhealthy, not to the job."""
        fault = await self._context.find_fault(run.record.device.uuid)
        if fault is None:
            return outcome
        message = f"the GPU is unhealthy: {fault}; {outcome.message}"
        return msgspec.structs.replace(outcome, reason=FailureReason.GPU_UNHEALTHY, message=message)

    def _make_supervisor(self, run: Run, outbox: EventOutbox) -> Supervisor:
        record, job = run.record, self._queued.job
        device = self._device
        usage = UsageMeter(device.usd_per_hour, started=record.started_at, clock=time.time, gpu_count=device.count)
        resumes = record.engine not in NEVER_RESUMING
        timings = Timings(self._context.observe, run.spec.training_type, device.uuid)
        progress = ProgressReader(
            run.folder,
            usage,
            outbox,
            self._ownership,
            timings,
            saved_step=record.resumed_step,
            resumes=resumes,
            kept=kept_settings(run.spec),
        )
        limits = Limits(
            stop_grace=self._settings.stop_grace,
            stall_preparing=self._settings.stall_preparing,
            stall_training=self._settings.stall_training,
            budget_usd=None if job.max_cost_usd is None else job.max_cost_usd - record.claim_record.before.cost_usd,
        )
        return Supervisor(run.folder, usage, progress, self._control, limits)

    def _announce(self, run: Run, outbox: EventOutbox) -> None:
        record = run.record
        outbox.emit(
            JobClaimed,
            training_type=run.spec.training_type,
            gpu=self._device.describe(),
            engine=record.engine,
            resume_step=record.resumed_step,
            changes=record.changes,
            predicted=record.predicted,
            choices=record.choices,
            gain=record.gain,
        )
        if self._queued.job.max_cost_usd is not None and self._device.usd_per_hour is None:
            message = f"maxCostUSD cannot be kept: no price is known for {self._device.name}"
            outbox.emit(JobWarning, message=message)

    async def _start_trainer(self, run: Run, supervisor: Supervisor) -> Outcome | Detached:
        name = run.spec.engine
        try:
            child = await self._context.standby.hand_over(name, run)
            warm = child is not None
            child = child or run.start(self._settings.engines[name].command, trainer_environment(self._device))
        except OSError as error:
            return Broken(reason=FailureReason.HOST_UNFIT, message=f"cannot start trainer: {error}")
        log.info("trainer_started", pid=child.pid, folder=str(run.folder.path), standby=warm)
        return await self._follow(child, run, supervisor)

    async def _follow(self, child: ChildProcess, run: Run, supervisor: Supervisor) -> Outcome | Detached:
        """Follow a running trainer to its end, and add the energy that it used."""
        outcome = await supervisor.follow(child)
        if isinstance(outcome, Detached):
            return outcome
        energy_wh = await energy_wh_since(run.record.device, run.record.energy_j)
        usage = msgspec.structs.replace(outcome.usage, energy_wh=energy_wh)
        return msgspec.structs.replace(outcome, usage=usage)

    async def _find_trainer(self, run: Run, supervisor: Supervisor) -> Outcome | Detached:
        identity = run.identity
        if identity is None:
            log.warning("trainer_never_started", folder=str(run.folder.path))
            return Stopped(step=run.record.resumed_step)
        child = ChildProcess.find(identity)
        if child is not None:
            log.info("trainer_found", pid=child.pid, folder=str(run.folder.path))
            outcome = await self._follow(child, run, supervisor)
        else:
            log.warning("trainer_gone", pid=identity.pid, folder=str(run.folder.path))
            await asyncio.to_thread(identity.kill_leftovers)
            outcome = await supervisor.look_back(run.last_sign(), rebooted=not identity.same_boot)
        # The standby trainer waited for this run, and the daemon died before it handed the run over.
        not_begun = isinstance(outcome, Broken) and not run.has_begun
        return Stopped(step=run.record.resumed_step) if not_begun else outcome

    async def _promote(self, run: Run, done: Done, outbox: EventOutbox) -> Outcome:
        # A superseded owner must not put its result in the place of the next owner's.
        if not await self._ownership.confirm():
            return done
        try:
            account = Account(
                started_at=run.record.started_at,
                finished_at=done.record.time,
                usage=done.usage,
                predicted=run.record.predicted,
                changes=run.record.changes,
            )
            record = await asyncio.to_thread(promote, self._queued.job, run.spec, done.record, account)
        except AttemptError as error:
            return Broken.because_of(error, done.usage)
        for message in overruns(run.record.predicted, done, self._device):
            outbox.emit(JobWarning, message=message)
        step_seconds, peak_memory = ratios(run.record.predicted, done, self._device)
        self._context.observe(PredictionChecked(step_seconds=step_seconds, peak_memory=peak_memory))
        if done.seconds_per_step is not None:
            self._context.rates.note(self._device, run.spec.engine, workload_of_spec(run.spec), done.seconds_per_step)
        return msgspec.structs.replace(done, record=record)

    async def _finalize(self, outcome: Outcome, outbox: EventOutbox) -> FinalizedAttempt:
        completion = Completion(self._queued, self._ownership, self._control, outbox, self._run)
        decided = None if self._run is None else self._run.folder.find(CLOSING_FILE, Closing)
        return await completion.carry_out(decided or completion.decide(outcome, self._settings.retry_delays))

    async def _clean_up(self, end: FinalizedAttempt) -> None:
        run, self._run = self._run, None
        if run is not None:
            await asyncio.to_thread(self._put_away, run, end)

    def _put_away(self, run: Run, end: FinalizedAttempt) -> None:
        if end.final:
            output = str(output_folder(run.record.job))
            job = EndedJob(job_id=run.spec.job_id, output_path=output, attempt=run.spec.attempt)
            note_ended(self._settings.state_dir, job)
        run.folder.remove()
