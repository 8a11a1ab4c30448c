"""Rejection: what is no job, or not the job of its id, is dead-lettered, and an event is published."""

import uuid

import structlog
from aio_pika.abc import AbstractIncomingMessage

from training_schemas.events import JobRefused, JobRejected
from training_schemas.progress import Fault
from training_schemas.validation import InvalidMessageError
from training_worker.broker.connection import Connection
from training_worker.broker.event_publisher import EventPublisher
from training_worker.broker.session import broker_errors
from training_worker.queue.dead_letter import ID_TAKEN, REJECTED, first_bytes, job_id_of
from training_worker.queue.dead_letter_queue import dead_letter_job
from training_worker.queue.job_message import QueuedJob

# An event is read by everybody: only some of the faults of a very faulty message are published.
MOST_FAULTS = 100
LONGEST_PATH = 200
LONGEST_REASON = 1000

log = structlog.get_logger()


async def refuse(queued: QueuedJob, body: bytes, connection: Connection, publisher: EventPublisher) -> None:
    """Publish that a job's id is that of another one, and dead-letter it. Raises `BrokerError`."""
    text = f"the id {queued.job_id} is that of another job, which was submitted before"
    identity = str(uuid.uuid4())
    event = publisher.state(JobRefused, identity, job_id=queued.job_id, attempt=0, sequence=1, digest=queued.digest)
    await dead_letter_job(connection, body, job_id=queued.job_id, reason=ID_TAKEN, message=text)
    await publisher.publish(event)
    log.warning("refused", job=queued.job_id, digest=queued.digest)


async def reject(
    message: AbstractIncomingMessage, faults: list[Fault], connection: Connection, publisher: EventPublisher
) -> None:
    """Publish what is wrong with a message, dead-letter it, and acknowledge it. Raises `BrokerError`."""
    job_id, faults = job_id_of(message.body), bounded_faults(faults)
    text = str(InvalidMessageError(faults))
    event = publisher.state(JobRejected, str(uuid.uuid4()), job_id=job_id, attempt=0, sequence=1, faults=faults)
    await dead_letter_job(connection, message.body, job_id=job_id, reason=REJECTED, message=text, faults=faults)
    await publisher.publish(event)
    with broker_errors():
        await message.ack()
    log.warning("rejected", job=job_id, faults=first_bytes(text, LONGEST_REASON))


def bounded_faults(faults: list[Fault]) -> list[Fault]:
    """Return the first of a message's faults, each of a bounded length; the last one counts the rest."""
    kept = [
        Fault(path=first_bytes(fault.path, LONGEST_PATH), reason=first_bytes(fault.reason, LONGEST_REASON))
        for fault in faults[:MOST_FAULTS]
    ]
    left = len(faults) - len(kept)
    return [*kept, Fault(path="", reason=f"{left} faults more")] if left else kept
