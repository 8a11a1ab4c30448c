"""The dead-letter queue: what gave up is put there with its history, looked at, put back or dropped."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from training_schemas.jobs import JOB_TYPE
from training_schemas.ledger import Completed, Requeued
from training_schemas.progress import Fault
from training_schemas.usage import AttemptSummary
from training_schemas.validation import InvalidMessageError
from training_worker.broker.connection import Connection
from training_worker.broker.names import LEDGER_KEY, SUBMIT_KEY, Names
from training_worker.broker.session import Session, broker_errors, persistent
from training_worker.errors import DeadLetterError
from training_worker.ledger.ledger import read_history
from training_worker.ledger.tail import CLOCK_SLACK
from training_worker.queue.dead_letter import SIZE_HEADER, DeadLetter, DeadLetterFields, kept_body, read_dead_letter

# How many are looked at: the most that AMQP lets a consumer hold.
MOST_DEAD_LETTERS = 65_535

# After this many seconds without a dead letter there are no more: when some are known to be missing, and when none
# is. The broker takes some milliseconds to restore what the last reader returned.
LONG_SILENCE = 5.0
SHORT_SILENCE = 0.2


async def dead_letter_job(  # noqa: PLR0913 - a dead letter's parts, of which most have few
    connection: Connection,
    body: bytes,
    *,
    job_id: str | None,
    reason: str,
    message: str,
    faults: Sequence[Fault] = (),
    history: Sequence[AttemptSummary] = (),
    output_tail: Sequence[str] = (),
) -> None:
    """Dead-letter a message's body, cut if it is too large to be a job, and wait for the confirm."""
    text = DeadLetterFields(reason=reason, message=message, faults=faults, history=history, output_tail=output_tail)
    kept = kept_body(body)
    # The original length of a body that was cut.
    cut = {} if kept is body else {SIZE_HEADER: len(body)}
    dead_letter = persistent(kept, message_id=job_id, type=JOB_TYPE, headers=text.headers(time.time()) | cut)
    await connection.publish("", connection.names.dead, dead_letter)


class DeadQueue:
    """All dead letters, oldest first, held while they are looked at: nobody else sees them meanwhile."""

    def __init__(self, session: Session, names: Names, held: list[AbstractIncomingMessage]) -> None:
        self._session = session
        self._names = names
        self._held = [(read_dead_letter(message), message) for message in held]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """Return all dead letters of the queue."""
        return [dead_letter for dead_letter, _ in self._held]

    async def requeue(self, job_ids: Sequence[str]) -> list[DeadLetter]:
        """Put the newest dead letter of each job back into the intake. Raises `DeadLetterError`, `BrokerError`.

        Nothing is put back unless all can be.
        """
        chosen = [self._newest_job(job_id) for job_id in dict.fromkeys(job_ids)]
        for dead_letter, _ in chosen:
            await self._refuse_completed(dead_letter)
        for dead_letter, message in chosen:
            await self._put_back(dead_letter)
            with broker_errors():
                await message.ack()
        return [dead_letter for dead_letter, _ in chosen]

    async def drop(self, job_ids: Sequence[str]) -> list[DeadLetter]:
        """Drop all dead letters of these jobs. Raises `DeadLetterError`, and then drops none; `BrokerError`."""
        chosen = [held for job_id in dict.fromkeys(job_ids) for held in self._of(job_id)]
        with broker_errors():
            for _, message in chosen:
                await message.ack()
        return [dead_letter for dead_letter, _ in chosen]

    def _of(self, job_id: str) -> list[tuple[DeadLetter, AbstractIncomingMessage]]:
        found = [held for held in self._held if held[0].job_id == job_id]
        if not found:
            raise DeadLetterError(f"the dead-letter queue has no dead letter of {job_id}")
        return found

    def _newest_job(self, job_id: str) -> tuple[DeadLetter, AbstractIncomingMessage]:
        why = ""
        for dead_letter, message in reversed(self._of(job_id)):
            try:
                _ = dead_letter.job
            except InvalidMessageError as error:
                why = why or str(error)
            else:
                return dead_letter, message
        raise DeadLetterError(f"cannot put {job_id} back, since it is no valid job: {why}")

    async def _refuse_completed(self, dead_letter: DeadLetter) -> None:
        """Refuse an older dead letter of a job that was put back and completed since: that job has ended."""
        if not dead_letter.ended:
            return
        since = (dead_letter.dead_lettered_at or 0.0) - CLOCK_SLACK
        history = await read_history(self._session, self._names, dead_letter.job_id, since)
        if isinstance(history.terminal, Completed):
            raise DeadLetterError(f"cannot put {dead_letter.job_id} back: it has been completed since")

    async def _put_back(self, dead_letter: DeadLetter) -> None:
        # In this order, and the dead letter is acknowledged last: whatever is interrupted in between leaves it there.
        if dead_letter.ended:
            entry = Requeued(job_id=dead_letter.job_id, time=time.time())
            await self._session.publish(self._names.control, LEDGER_KEY, persistent(msgspec.json.encode(entry)))
        job = dead_letter.job
        message = persistent(dead_letter.body, message_id=job.job_id, type=JOB_TYPE, priority=job.priority)
        await self._session.publish(self._names.jobs, SUBMIT_KEY, message)


@asynccontextmanager
async def opened(session: Session, names: Names) -> AsyncIterator[DeadQueue]:
    """Open the dead-letter queue; what is neither put back nor dropped keeps its place. Raises `BrokerError`."""
    channel = await session.channel(prefetch=MOST_DEAD_LETTERS)
    try:
        yield DeadQueue(session, names, await _read_all(session, channel, names))
    finally:
        # Unacknowledged messages return. Those that one consumer held return in order; those that were fetched or
        # rejected one by one would not.
        await session.close_channel(channel)


async def _read_all(session: Session, channel: AbstractChannel, names: Names) -> list[AbstractIncomingMessage]:
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    with broker_errors():
        queue = await channel.declare_queue(names.dead, passive=True)
        await queue.consume(arrived.put)
    count = queue.declaration_result.message_count or 0
    held: list[AbstractIncomingMessage] = []
    with contextlib.suppress(TimeoutError):
        while len(held) < MOST_DEAD_LETTERS:
            silence = LONG_SILENCE if len(held) < count else SHORT_SILENCE
            held.append(await session.wait_for(asyncio.wait_for(arrived.get(), silence)))
    return held
