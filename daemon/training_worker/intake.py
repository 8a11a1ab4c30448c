"""The intake: what backends publish is checked, planned and put into the queue of the tier that it needs."""

import asyncio
import time
import uuid

import msgspec
import structlog
from aio_pika.abc import AbstractIncomingMessage

from training_schemas.base import JobId
from training_schemas.events import NO_JOB, JobQueued, JobRejected
from training_schemas.jobs import JOB_TYPE
from training_schemas.ledger import Submitted
from training_schemas.progress import Fault
from training_schemas.validation import InvalidMessageError, refused
from training_worker.broker.ledger import Ledger
from training_worker.broker.link import Link
from training_worker.broker.session import Session, broker_errors
from training_worker.dead import bury
from training_worker.errors import BrokerError
from training_worker.paths import path_faults
from training_worker.queued_job import QueuedJob
from training_worker.reporter import Speaker
from training_worker.settings import Settings

PREFETCH = 16

log = structlog.get_logger()


class Intake:
    """Serves the intake queue, on each session anew."""

    def __init__(self, link: Link, ledger: Ledger, speaker: Speaker, settings: Settings) -> None:
        self._link = link
        self._ledger = ledger
        self._speaker = speaker
        self._settings = settings

    async def run(self) -> None:
        """Serve for ever."""
        await self._link.serve(self._serve_on)

    async def _serve_on(self, session: Session) -> None:
        async def on_message(message: AbstractIncomingMessage) -> None:
            try:
                await self._handle(message)
            except BrokerError as error:
                # The message is not settled: the broker gives it to the next one once this session is gone.
                log.warning("intake_interrupted", error=str(error))
                session.lost.set()

        channel = await session.channel(prefetch=PREFETCH)
        await session.watch(channel)
        with broker_errors():
            queue = await channel.get_queue(self._link.names.intake, ensure=False)
            await queue.consume(on_message)

    async def _handle(self, message: AbstractIncomingMessage) -> None:
        try:
            queued = self._read(message)
        except InvalidMessageError as error:
            await reject(message, error.faults, self._link, self._speaker)
            return
        await self._let_in(queued)
        with broker_errors():
            await message.ack()

    def _read(self, message: AbstractIncomingMessage) -> QueuedJob:
        if message.type not in (None, "", JOB_TYPE):
            raise refused("", f"unknown message type {message.type!r}; {JOB_TYPE} is read")
        queued = QueuedJob.submitted(message.body, time.time())
        if faults := path_faults(queued.job, self._settings):
            raise InvalidMessageError(faults)
        return queued

    async def _let_in(self, queued: QueuedJob) -> None:
        entry = Submitted(job_id=queued.job_id, time=queued.submitted_at, digest=queued.digest)
        event = self._speaker.state(
            JobQueued,
            f"{queued.job_id}/0/1",
            job_id=queued.job_id,
            attempt=0,
            sequence=1,
            training_type=queued.job.training_type,
            tier=queued.plan.tier,
            preset=queued.plan.preset,
        )
        # One after the other on one channel, and confirmed together: the event is on its way before the job can be
        # taken, so that whoever reads the events sees it queued before it is claimed.
        await asyncio.gather(
            self._ledger.append(entry),
            self._speaker.publish(event),
            self._link.publish(self._link.names.jobs, queued.tier_key, queued.message()),
        )
        log.info("queued", job=queued.job_id, key=queued.tier_key)


async def reject(message: AbstractIncomingMessage, faults: list[Fault], link: Link, speaker: Speaker) -> None:
    """Tell everybody what is wrong with a message, put it into the dead queue, and settle it. Raises `BrokerError`."""
    job_id = job_id_of(message.body)
    text = str(InvalidMessageError(faults))
    event = speaker.state(JobRejected, str(uuid.uuid4()), job_id=job_id, attempt=0, sequence=1, faults=faults)
    await bury(link, message.body, job_id=job_id, reason="rejected", message=text)
    await speaker.publish(event)
    with broker_errors():
        await message.ack()
    log.warning("rejected", job=job_id, faults=text)


class _JobIdOnly(msgspec.Struct, rename="camel"):
    job_id: JobId


def job_id_of(body: bytes) -> str:
    """The id in a message that need not be a valid job; `NO_JOB` if there is none."""
    try:
        return msgspec.json.decode(body, type=_JobIdOnly).job_id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return NO_JOB
