"""The intake: jobs from backends are checked, planned and put into the queue of the tier that they need."""

import asyncio
import time
import uuid
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog
from aio_pika.abc import AbstractIncomingMessage

from training_presets.estimates import CostEstimate, estimate_cost
from training_presets.planner import Plan
from training_presets.tier_estimates import TierEstimate, tier_estimates
from training_schemas.events import Event, JobDuplicate, JobQueued
from training_schemas.jobs import JOB_TYPE
from training_schemas.ledger import Submitted
from training_schemas.plans import Prediction, TierPrediction
from training_schemas.validation import InvalidMessageError, refused
from training_worker.broker.connection import Connection
from training_worker.broker.event_publisher import EventPublisher
from training_worker.broker.session import Session, broker_errors
from training_worker.broker.topology import declare_tier_queue
from training_worker.errors import BrokerError
from training_worker.ledger.job_history import JobHistory
from training_worker.ledger.ledger import Ledger
from training_worker.queue.allowed_paths import path_faults
from training_worker.queue.job_message import QueuedJob
from training_worker.queue.rejection import refuse, reject
from training_worker.settings import Settings

PREFETCH = 16

log = structlog.get_logger()


class Intake:
    """Serves the intake queue, on each session again."""

    def __init__(self, connection: Connection, ledger: Ledger, publisher: EventPublisher, settings: Settings) -> None:
        self._connection = connection
        self._ledger = ledger
        self._publisher = publisher
        self._settings = settings
        # The submissions of one job are handled one after the other: each sees in the ledger the result of the last.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self) -> None:
        """Serve for ever."""
        await self._connection.serve(self._serve_on)

    async def _serve_on(self, session: Session) -> None:
        async def on_message(message: AbstractIncomingMessage) -> None:
            try:
                await self._handle(message, session)
            except BrokerError as error:
                # The message is not acknowledged: the broker delivers it to the next one once this session is gone.
                log.warning("intake_interrupted", error=str(error))
                session.lost.set()

        channel = await session.channel(prefetch=PREFETCH)
        await session.watch(channel)
        with broker_errors():
            queue = await channel.get_queue(self._connection.names.intake, ensure=False)
            await queue.consume(on_message)

    async def _handle(self, message: AbstractIncomingMessage, session: Session) -> None:
        try:
            queued = self._read(message)
        except InvalidMessageError as error:
            await reject(message, error.faults, self._connection, self._publisher)
            return
        async with self._turns.setdefault(queued.job_id, asyncio.Lock()):
            history = await self._ledger.recall(session, queued.job_id)
            await self._decide(queued, history, message.body, session)
        with broker_errors():
            await message.ack()

    async def _decide(self, queued: QueuedJob, history: JobHistory, body: bytes, session: Session) -> None:
        if history.digest not in (None, queued.digest):
            await refuse(queued, body, self._connection, self._publisher)
        elif history.terminal is not None:
            await self._answer(queued, history)
        else:
            await self._make_queue(queued, session)
            await self._admit(_as_first_submitted(queued, history), again=history.requeued)

    def _read(self, message: AbstractIncomingMessage) -> QueuedJob:
        if message.type not in (None, "", JOB_TYPE):
            raise refused("", f"unknown message type {message.type!r}; {JOB_TYPE} is read")
        queued = QueuedJob.submitted(message.body, time.time())
        if faults := path_faults(queued.job, self._settings):
            raise InvalidMessageError(faults)
        return queued

    async def _answer(self, queued: QueuedJob, history: JobHistory) -> None:
        await self._publish(JobDuplicate, queued, outcome=history.outcome, output_path=queued.job.output_path)
        log.info("duplicate", job=queued.job_id, outcome=history.outcome)

    async def _make_queue(self, queued: QueuedJob, session: Session) -> None:
        """Declare a queue for several GPUs with its first job, which may come before a worker that has as many."""
        plan = queued.plan
        if plan.gpu_count == 1:
            return
        channel = await session.channel(prefetch=0)
        with broker_errors():
            await declare_tier_queue(channel, self._connection.names, plan.family, plan.tier, plan.gpu_count)
        await session.close_channel(channel)

    async def _admit(self, queued: QueuedJob, *, again: bool) -> None:
        entry = Submitted(job_id=queued.job_id, time=queued.submitted_at, digest=queued.digest)
        plan = queued.plan
        # Published twice for the same submission, it is the same event; for a job that was put back it is another one.
        event_id = str(uuid.uuid4()) if again else f"{queued.job_id}/0/1"
        details = {
            "training_type": plan.training_type,
            "tier": plan.tier,
            "gpu_count": plan.gpu_count,
            "preset": plan.preset,
            "changes": plan.changes,
            "warnings": [advice.message for advice in plan.warnings],
            "predicted": predict_queued(plan, estimate_cost(plan)),
            "tiers": [predict_on_tier(plan, one) for one in tier_estimates(plan)],
        }
        # One after the other on one channel, and confirmed together: the event is published before the job can be
        # consumed, so that readers of the events see it queued before it is claimed.
        await asyncio.gather(
            self._ledger.append(entry),
            self._publish(JobQueued, queued, event_id=event_id, **details),
            self._connection.publish(self._connection.names.jobs, queued.tier_key, queued.message()),
        )
        log.info("queued", job=queued.job_id, key=queued.tier_key)

    async def _publish(
        self, kind: type[Event], queued: QueuedJob, *, event_id: str | None = None, **fields: Any
    ) -> None:
        identity = event_id or str(uuid.uuid4())
        encoded = self._publisher.state(kind, identity, job_id=queued.job_id, attempt=0, sequence=1, **fields)
        await self._publisher.publish(encoded)


def _as_first_submitted(queued: QueuedJob, history: JobHistory) -> QueuedJob:
    """Return the job as of its first submission, from which on the ledger is searched for its attempts."""
    if history.submitted_at is not None:
        return msgspec.structs.replace(queued, submitted_at=history.submitted_at)
    # The ledger has forgotten the submission: it is searched as a whole.
    return msgspec.structs.replace(queued, submitted_at=0.0) if history.attempts else queued


def predict_queued(plan: Plan, estimate: CostEstimate) -> Prediction:
    """Predict what a job takes on the GPU that its tier is priced by."""
    return Prediction(
        card=estimate.card,
        peak_vram_mib=round(estimate.peak_vram_gib * 1024),
        seconds_per_step=60 / estimate.steps_per_minute,
        gpu_seconds=estimate.training_hours * 3600 * plan.gpu_count,
        cost_usd=estimate.estimated_cost_usd,
    )


def predict_on_tier(plan: Plan, estimate: TierEstimate) -> TierPrediction:
    """What a job takes on the card that another tier is priced by."""
    predicted = Prediction(
        card=estimate.card,
        peak_vram_mib=estimate.peak_vram_mib,
        seconds_per_step=estimate.seconds_per_step,
        gpu_seconds=estimate.hours * 3600 * plan.gpu_count,
        cost_usd=estimate.usd,
    )
    return TierPrediction(tier=estimate.tier, predicted=predicted)
