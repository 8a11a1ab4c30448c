"""The ledger: a stream of the jobs' turning points. What is true of a job is what the ledger says of it.

Each daemon reads the stream's tail as it grows, so that asking about a young job costs one round trip. An older job
costs one scan from its submission.
"""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from training_schemas.ledger import AnyEntry, Barrier, JobEntry, decode_entry
from training_worker.broker.link import Link
from training_worker.broker.session import Session, broker_errors, persistent
from training_worker.history import JobHistory

# Streams are read in chunks: a reader at rest asks for more than it will get.
PREFETCH = 500
READ_TIMEOUT = 60.0

# How far the clocks of hosts and broker may differ, seconds.
CLOCK_SLACK = 60.0

# Histories kept in memory. One takes some hundred bytes.
MOST_JOBS = 20_000

log = structlog.get_logger()


class Ledger:
    """Reads and writes the ledger. `follow` must run for the rest to work."""

    def __init__(self, link: Link, *, clock: Callable[[], float]) -> None:
        self._link = link
        self._clock = clock
        self._tail = Tail(since=clock() - 2 * CLOCK_SLACK)
        self._following: Session | None = None

    async def follow(self) -> None:
        """Read the tail, on each session from where the last one stopped; for ever."""
        await self._link.serve(self._follow_on)

    async def _follow_on(self, session: Session) -> None:
        await self._consume(session, self._tail)
        self._following = session

    async def append(self, entry: AnyEntry) -> None:
        """Write an entry, again if its confirm is lost; entries are idempotent."""
        await self._link.publish("", self._link.names.ledger, persistent(msgspec.json.encode(entry)))

    async def append_once(self, session: Session, entry: AnyEntry) -> None:
        """Write an entry on this session or not at all. Raises `BrokerLostError`."""
        await session.publish("", self._link.names.ledger, persistent(msgspec.json.encode(entry)))

    async def read(self, session: Session, job_id: str, submitted_at: float) -> JobHistory:
        """All that was written about a job before now. ``submitted_at`` in unix seconds. Raises `BrokerLostError`."""
        if self._following is session and submitted_at - CLOCK_SLACK >= self._tail.since:
            await self._pass_barrier(session, self._tail)
            return self._tail.history(job_id)
        return await self._scan(session, job_id, max(0.0, submitted_at - CLOCK_SLACK))

    async def _scan(self, session: Session, job_id: str, since: float) -> JobHistory:
        tail = Tail(since=since, only=job_id)
        channel = await self._consume(session, tail)
        try:
            await self._pass_barrier(session, tail)
        finally:
            await session.close_channel(channel)
        return tail.history(job_id)

    async def _pass_barrier(self, session: Session, tail: "Tail") -> None:
        nonce = uuid.uuid4().hex
        seen = tail.expect(nonce)
        try:
            await self.append_once(session, Barrier(time=self._clock(), nonce=nonce))
            await session.wait_for(seen, timeout=READ_TIMEOUT)
        finally:
            tail.forget(nonce)

    async def _consume(self, session: Session, tail: "Tail") -> AbstractChannel:
        async def on_message(message: AbstractIncomingMessage) -> None:
            tail.receive(message.body, int(str(message.headers["x-stream-offset"])))
            await message.ack()

        channel = await session.channel(prefetch=PREFETCH)
        await session.watch(channel)
        with broker_errors():
            queue = await channel.get_queue(self._link.names.ledger, ensure=False)
            await queue.consume(on_message, arguments=tail.start)
        return channel


class Tail:
    """What was read of the stream since a time: histories by job, and markers that somebody waits for."""

    def __init__(self, *, since: float, only: str | None = None) -> None:
        self.since = since
        self._only = only
        self._offset: int | None = None
        self._histories: OrderedDict[str, tuple[float, JobHistory]] = OrderedDict()
        self._waiters: dict[str, asyncio.Future[None]] = {}

    @property
    def start(self) -> dict[str, Any]:
        """The consumer's arguments: where to go on."""
        if self._offset is not None:
            return {"x-stream-offset": self._offset + 1}
        return {"x-stream-offset": datetime.fromtimestamp(self.since, UTC)}

    def expect(self, nonce: str) -> asyncio.Future[None]:
        """A future that is done when the marker has come back."""
        return self._waiters.setdefault(nonce, asyncio.get_running_loop().create_future())

    def forget(self, nonce: str) -> None:
        """Nobody waits for the marker any more."""
        self._waiters.pop(nonce, None)

    def history(self, job_id: str) -> JobHistory:
        """What is known of a job."""
        return self._histories.get(job_id, (0.0, JobHistory()))[1]

    def receive(self, body: bytes, offset: int) -> None:
        """Take in one entry."""
        if self._offset is not None and offset <= self._offset:
            return
        self._offset = offset
        try:
            entry = decode_entry(body)
        except msgspec.MsgspecError as error:
            # A later version's entry, or a stranger's. What this version decides does not depend on it.
            log.warning("ledger_entry_unreadable", offset=offset, error=str(error))
            return
        if isinstance(entry, Barrier):
            waiter = self._waiters.get(entry.nonce)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        elif isinstance(entry, JobEntry) and self._only in (None, entry.job_id):
            self._remember(entry)

    def _remember(self, entry: Any) -> None:
        history = self.history(entry.job_id).after(entry)
        self._histories[entry.job_id] = (entry.time, history)
        self._histories.move_to_end(entry.job_id)
        if len(self._histories) > MOST_JOBS:
            _, (time, _) = self._histories.popitem(last=False)
            # Whoever was submitted before this may have been forgotten, and is looked up by a scan.
            self.since = max(self.since, time + CLOCK_SLACK)
