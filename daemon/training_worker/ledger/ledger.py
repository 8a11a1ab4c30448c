"""The ledger: a stream of the jobs' milestones. It is the authority on the state of a job.

Each daemon reads the stream's tail as it grows, so that asking about a young job costs one round trip. An older job
costs one scan from its submission.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable

import msgspec
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from training_schemas.ledger import AnyEntry, Barrier, JobEntry
from training_worker.broker.connection import Connection
from training_worker.broker.names import LEDGER_KEY, Names
from training_worker.broker.session import Session, broker_errors, persistent
from training_worker.errors import BrokerLostError
from training_worker.ledger.job_history import JobHistory
from training_worker.ledger.tail import CLOCK_SLACK, JobTail, Tail

# Streams are read in chunks: an idle reader asks for more than it will get.
PREFETCH = 500

# Acknowledging each entry would take as long as reading it.
ACKNOWLEDGE_EVERY = 100

# A reader that has got nothing at all for this long waits in vain.
READ_TIMEOUT = 60.0

# How far back a daemon reads when it starts, seconds: a job submitted again within that needs no scan.
HISTORY = 24 * 3600.0


class Ledger:
    """Reads and writes the ledger. `follow` must run for the rest to work."""

    def __init__(self, connection: Connection, *, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._tail = Tail(since=clock() - HISTORY)
        self._caught_up: Session | None = None
        self._changed = asyncio.Condition()

    async def follow(self) -> None:
        """Read the tail, on each session from the last offset; for ever."""
        await self._connection.serve(self._follow_on)

    async def _follow_on(self, session: Session) -> None:
        await _consume(session, self._connection.names, self._tail)
        await self._pass_barrier(session)
        async with self._changed:
            self._caught_up = session
            self._changed.notify_all()

    async def append(self, entry: AnyEntry) -> None:
        """Write an entry, again if its confirm is lost; entries are idempotent."""
        await self._connection.publish("", self._connection.names.ledger, persistent(msgspec.json.encode(entry)))

    async def append_once(self, session: Session, entry: AnyEntry) -> None:
        """Write an entry on this session or not at all. Raises `BrokerLostError`."""
        await session.publish("", self._connection.names.ledger, persistent(msgspec.json.encode(entry)))

    async def read(self, session: Session, job_id: str, submitted_at: float) -> JobHistory:
        """Return the history of a job up to now. ``submitted_at`` in unix seconds. Raises `BrokerLostError`."""
        if self._caught_up is session and submitted_at - CLOCK_SLACK >= self._tail.since:
            await self._pass_barrier(session)
            return self._tail.history(job_id)
        return await self._scan(session, job_id, submitted_at)

    async def recall(self, session: Session, job_id: str) -> JobHistory:
        """Return the history of a job that has entries of the last day, whenever it was submitted.

        Waits until the tail has been read. Raises `BrokerLostError`.
        """
        await session.wait_for(self._until_caught_up(session))
        await self._pass_barrier(session)
        if self._tail.began_before(job_id):
            return await self._scan(session, job_id, 0.0)
        return self._tail.history(job_id)

    async def end_event(self, session: Session, job_id: str, submitted_at: float) -> bytes:
        """Return the event of a job's end, as its terminal entry keeps it; empty if there is none.

        Raises `BrokerLostError`.
        """
        history = await self._scan(session, job_id, submitted_at)
        return b"" if history.terminal is None else bytes(history.terminal.event)

    async def _scan(self, session: Session, job_id: str, submitted_at: float) -> JobHistory:
        return await read_history(session, self._connection.names, job_id, submitted_at - CLOCK_SLACK)

    async def _until_caught_up(self, session: Session) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._caught_up is session)

    async def _pass_barrier(self, session: Session) -> None:
        await _pass_barrier(session, self._connection.names, self._tail)


async def read_history(
    session: Session, names: Names, job_id: str, since: float, *, until: JobEntry | None = None
) -> JobHistory:
    """Return the history of a job between ``since`` (unix seconds) and now, or before the entry ``until``.

    Raises `BrokerLostError`.
    """
    tail = JobTail(since=max(0.0, since), job_id=job_id, until=until)
    channel = await _consume(session, names, tail)
    try:
        await _pass_barrier(session, names, tail)
    finally:
        await session.close_channel(channel)
    return tail.history(job_id)


async def _consume(session: Session, names: Names, tail: Tail) -> AbstractChannel:
    count = itertools.count(1)

    async def on_message(message: AbstractIncomingMessage) -> None:
        tail.receive(message.body, int(str(message.headers["x-stream-offset"])))
        if next(count) % ACKNOWLEDGE_EVERY == 0:
            await message.ack(multiple=True)

    channel = await session.channel(prefetch=PREFETCH)
    await session.watch(channel)
    with broker_errors():
        queue = await channel.get_queue(names.ledger, ensure=False)
        await queue.consume(on_message, arguments=tail.start)
    return channel


async def _pass_barrier(session: Session, names: Names, tail: Tail) -> None:
    nonce = uuid.uuid4().hex
    seen = tail.expect(nonce)
    try:
        marker = Barrier(time=time.time(), nonce=nonce)
        await session.publish(names.control, LEDGER_KEY, persistent(msgspec.json.encode(marker)))
        while not await _comes_back(session, tail, seen):
            pass
    finally:
        tail.forget(nonce)


async def _comes_back(session: Session, tail: Tail, seen: asyncio.Future[None]) -> bool:
    """Wait for the marker. False if it has not come yet and the reading continues."""
    before = tail.offset
    try:
        await session.wait_for(asyncio.shield(seen), timeout=READ_TIMEOUT)
    except BrokerLostError:
        if session.lost.is_set() or tail.offset == before:
            raise
        return False
    return True
