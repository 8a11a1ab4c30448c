"""The dead queue: what gave up, with the reason in its headers."""

from aio_pika import Message

from training_schemas.jobs import JOB_TYPE
from training_worker.broker.link import Link
from training_worker.broker.session import persistent

REASON_HEADER = "x-training-reason"
MESSAGE_HEADER = "x-training-message"

# Headers travel in one AMQP frame, whose least maximum is 4096 bytes.
LONGEST_MESSAGE = 1000


async def bury(link: Link, body: bytes, *, job_id: str | None, reason: str, message: str) -> None:
    """Put a message's body into the dead queue, and wait for the confirm."""
    headers = {REASON_HEADER: reason, MESSAGE_HEADER: message[:LONGEST_MESSAGE]}
    letter: Message = persistent(body, message_id=job_id, type=JOB_TYPE, headers=headers)
    await link.publish("", link.names.dead, letter)
