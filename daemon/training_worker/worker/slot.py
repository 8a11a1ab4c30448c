"""The slot: one GPU, or several together. It consumes a job from its queues and has it trained; then the next."""

import asyncio

import msgspec
import structlog
from aio_pika.abc import AbstractIncomingMessage
from structlog.contextvars import bound_contextvars

from training_schemas.jobs import MemoryTier, ModelFamily
from training_schemas.validation import InvalidMessageError
from training_worker.attempts.control import ControlRequests
from training_worker.attempts.disk_needs import keep_reserved, reserve_as_planned
from training_worker.attempts.job_runner import JobRunner, SlotContext
from training_worker.attempts.run_spec import crowded_out
from training_worker.broker.names import delayed_key
from training_worker.broker.session import Session, broker_errors
from training_worker.errors import BrokerError
from training_worker.gpu.devices import room_on
from training_worker.gpu.nvml import DriverHangsError
from training_worker.ownership.claim import Claim, NotOurs
from training_worker.ownership.ownership import Ownership
from training_worker.queue.admission import Admission
from training_worker.queue.consumer import JobConsumer
from training_worker.queue.job_message import QueuedJob
from training_worker.queue.rejection import reject
from training_worker.runs.run import Run
from training_worker.storage.reservations import Reservation

log = structlog.get_logger()


class Slot:
    """The work of one GPU, or of several together."""

    def __init__(self, context: SlotContext, tier: MemoryTier) -> None:
        self._context = context
        self._owner = context.owner
        self._tier = tier
        self._control = ControlRequests()
        self._found: list[tuple[Run, Reservation]] = []
        self.job_id: str | None = None
        """The active job."""

    def release(self, why: str) -> None:
        """Return the active job to its queue, with a checkpoint."""
        self._control.release(why)

    def abort(self) -> None:
        """Return the active job to its queue, without waiting for a checkpoint."""
        self._control.abort.set()
        self._control.release("aborted")

    def detach(self) -> None:
        """Leave the active job's trainer to the next daemon."""
        self._control.detach.set()

    def expect(self, run: Run) -> None:
        """Note a run that an earlier daemon left, to be re-attached.

        All runs must be noted before any slot consumes a job: the disk space that they still need is reserved here.
        """
        reservation = self._context.reservations.make(run.spec.job_id)
        if not run.record.device.simulated:
            keep_reserved(run, reservation)
        self._found.append((run, reservation))

    async def reattach(self) -> None:
        """Re-attach to the expected runs."""
        for run, reservation in self._found:
            if self._control.detach.is_set():
                return
            with bound_contextvars(job=run.record.job.job_id, gpu=run.record.device.uuid), reservation:
                await self._reattach(run, reservation)

    async def _reattach(self, run: Run, reservation: Reservation) -> None:
        queued, control = run.queued, self._new_control()
        ownership = Ownership(self._owner, queued, run.record.claim_record, control.receive)
        # The GPU as recorded: its settings may have changed, but not what the run costs.
        context = msgspec.structs.replace(self._context, device=run.record.device)
        await self._run_owned(JobRunner(queued, ownership, control, context, reservation, found=run), queued.job_id)

    async def _run_owned(self, owned: JobRunner, job_id: str) -> None:
        self.job_id = job_id
        try:
            await owned.run()
        finally:
            self.job_id = None

    def _new_control(self) -> ControlRequests:
        """Return the control requests of another job; requests to this slot hold for it too."""
        self._control = self._control.for_next_job()
        return self._control

    async def run(self, admission: Admission, families: list[ModelFamily]) -> None:
        """Consume and train jobs, one at a time, until the admission is drained."""
        try:
            while await admission.wait_open():
                session = await admission.unless_closed(self._owner.connection.session())
                if session is not None:
                    await self._serve_while_connected(session, admission, families)
                if admission.closed:
                    # Whoever closed it may want the GPU for itself: an unhealthy one can be reset only if nobody uses
                    # it.
                    await self._context.standby.stop()
        finally:
            await self._context.standby.stop()

    async def _serve_while_connected(self, session: Session, admission: Admission, families: list[ModelFamily]) -> None:
        try:
            await self._serve(session, admission, families)
        except BrokerError as error:
            log.warning("taking_interrupted", error=str(error))
            session.lost.set()

    async def _serve(self, session: Session, admission: Admission, families: list[ModelFamily]) -> None:
        names, count = self._owner.connection.names, self._context.device.count
        source = await JobConsumer.open(session, names, self._tier, families, count)
        try:
            while not admission.closed and not session.lost.is_set():
                self._context.standby.prepare()
                delivery = await source.take(admission)
                if delivery is not None and not admission.closed:
                    await self._handle(delivery, session, source)
        finally:
            await source.close()

    async def _handle(self, delivery: AbstractIncomingMessage, session: Session, source: JobConsumer) -> None:
        try:
            queued = QueuedJob.waiting(delivery)
        except InvalidMessageError as error:
            # All jobs in a tier queue passed an intake; this one bypassed it, or is of another version.
            await reject(delivery, error.faults, self._owner.connection, self._context.publisher)
            await source.quiet()
            return
        with bound_contextvars(job=queued.job_id, gpu=self._context.device.uuid):
            if queued.should_avoid(self._owner.worker):
                # The job failed here: others may succeed.
                await self._defer(queued.passed_on(), delivery, session)
                log.info("passed_on", times=queued.passed + 1)
                await source.quiet()
                return
            with self._context.reservations.make(queued.job_id) as reservation:
                why = await self._lacks_room(queued, reservation)
                if why is None:
                    await self._own(queued, delivery, session, source, reservation)
                    return
                # Not the job's fault: it is not claimed, so no attempt is counted.
                await self._defer(queued, delivery, session)
                log.info("no_room_for_now", why=why)
                await source.quiet()

    async def _defer(self, queued: QueuedJob, delivery: AbstractIncomingMessage, session: Session) -> None:
        """Leave a job that nobody has claimed to whoever consumes it after a delay."""
        names, delay = self._owner.connection.names, self._context.settings.retry_delays[0]
        await session.publish(names.retry, delayed_key(delay, queued.tier_key), queued.message())
        with broker_errors():
            await delivery.ack()

    async def _lacks_room(self, queued: QueuedJob, reservation: Reservation) -> str | None:
        """Return why a job cannot be trained here now but perhaps later; None if it can, or its claim will fail."""
        context = self._context
        if context.device.simulated:
            return None
        shortage = await asyncio.to_thread(reserve_as_planned, queued, reservation, context.settings)
        if shortage is not None and shortage.passes:
            return shortage.text
        try:
            needed = crowded_out(queued.plan, await asyncio.to_thread(room_on, context.device))
        except DriverHangsError:
            return None
        if needed is not None and await context.is_crowded(context.device.uuid, needed):
            return f"others hold the GPU's memory, of which {needed} MiB are needed"
        return None

    async def _own(
        self,
        queued: QueuedJob,
        delivery: AbstractIncomingMessage,
        session: Session,
        source: JobConsumer,
        reservation: Reservation,
    ) -> None:
        control = self._new_control()
        result = await Claim(self._owner, queued, delivery, session, control.receive).make()
        # Only now, and beside the start of the trainer: cancelling a handful of consumers takes as long as a claim.
        quieting = asyncio.create_task(_quiet(source, session), name="quiet")
        if isinstance(result, NotOurs):
            log.info("not_ours", why=result.name)
        else:
            log.info("claimed", attempt=result.attempt)
            await self._run_owned(JobRunner(queued, result, control, self._context, reservation), queued.job_id)
        await quieting


async def _quiet(source: JobConsumer, session: Session) -> None:
    try:
        await source.quiet()
    except BrokerError:
        session.lost.set()
