"""The slot: one card. It takes a job from its queues and makes it its own, has it trained; then the next."""

import asyncio

import structlog
from aio_pika.abc import AbstractIncomingMessage
from structlog.contextvars import bound_contextvars

from training_schemas.jobs import MemoryTier, ModelFamily
from training_schemas.validation import InvalidMessageError
from training_worker.broker.session import Session
from training_worker.errors import BrokerError
from training_worker.gate import Gate
from training_worker.intake import reject
from training_worker.owned_job import OwnedJob, SlotContext
from training_worker.ownership import NotOurs, claim
from training_worker.queued_job import QueuedJob
from training_worker.take import Source
from training_worker.wishes import Wishes

log = structlog.get_logger()


class Slot:
    """One card's work."""

    def __init__(self, context: SlotContext, tier: MemoryTier) -> None:
        self._context = context
        self._owner = context.owner
        self._tier = tier
        self._wishes: Wishes | None = None

    def release(self, why: str) -> None:
        """Give the running job back to its queue, with a checkpoint."""
        if self._wishes is not None:
            self._wishes.end(why)

    async def run(self, gate: Gate, families: list[ModelFamily]) -> None:
        """Take and train jobs, one at a time, until the gate is drained."""
        while await gate.wait_open():
            session = await gate.unless_closed(self._owner.link.session())
            if session is None:
                continue
            try:
                await self._serve(session, gate, families)
            except BrokerError as error:
                log.warning("taking_interrupted", error=str(error))
                session.lost.set()

    async def _serve(self, session: Session, gate: Gate, families: list[ModelFamily]) -> None:
        source = await Source.open(session, self._owner.link.names, self._tier, families)
        try:
            while not gate.closed and not session.lost.is_set():
                delivery = await source.take(gate)
                if delivery is not None and not gate.closed:
                    await self._handle(delivery, session, source)
        finally:
            await source.close()

    async def _handle(self, delivery: AbstractIncomingMessage, session: Session, source: Source) -> None:
        try:
            queued = QueuedJob.waiting(delivery)
        except InvalidMessageError as error:
            # Whatever is in a tier queue passed an intake; this one was put there past it, or by another version.
            await reject(delivery, error.faults, self._owner.link, self._context.speaker)
            await source.quiet()
            return
        with bound_contextvars(job=queued.job_id, gpu=self._context.card.uuid):
            await self._own(queued, delivery, session, source)

    async def _own(
        self, queued: QueuedJob, delivery: AbstractIncomingMessage, session: Session, source: Source
    ) -> None:
        self._wishes = wishes = Wishes()
        try:
            result = await claim(self._owner, queued, delivery, session, wishes.receive)
            # Only now, and beside the start of the trainer: telling a handful of queues takes as long as a claim.
            quieting = asyncio.create_task(_quiet(source, session), name="quiet")
            if isinstance(result, NotOurs):
                log.info("not_ours", why=result.name)
            else:
                log.info("claimed", attempt=result.attempt)
                await OwnedJob(queued, result, wishes, self._context).run()
            await quieting
        finally:
            self._wishes = None


async def _quiet(source: Source, session: Session) -> None:
    try:
        await source.quiet()
    except BrokerError:
        session.lost.set()
