"""The outbox of an attempt's events: publishes them in order, each with its sequence number."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aio_pika import Message

from training_schemas.base import Wire
from training_schemas.events import JobEvent
from training_schemas.ledger import AnyEntry
from training_worker.broker.event_publisher import EventPublisher, event_message
from training_worker.broker.session import persistent
from training_worker.runs.run_directory import Bookmark, Cursor


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits to be published, and the attempt's cursor once it is."""

    exchange: str
    key: str
    message: Message
    cursor: Cursor


class NumberedEvent(Wire, frozen=True, kw_only=True):
    """An attempt's encoded event: its number, its id, its routing key, and the event itself."""

    sequence: int
    event_id: str
    key: str
    event: msgspec.Raw


Publish = Callable[[str, str, Message], Awaitable[object]]


class EventOutbox:
    """Numbers an attempt's events and hands them to a task that publishes them one after the other.

    `emit` never waits: a trainer is not delayed by an unreachable broker. Entries of the ledger go the same way, so
    that all readers see both in one order.

    Args:
        publisher: encodes events.
        publish: publishes and waits for the confirm.
        job_id: the attempt's job.
        attempt: its number.
        bookmark: how far an earlier daemon has come, and where that is kept; what was published is not published again.
    """

    def __init__(
        self, publisher: EventPublisher, publish: Publish, job_id: str, attempt: int, bookmark: Bookmark
    ) -> None:
        self._publisher = publisher
        self._publish = publish
        self._job_id = job_id
        self._attempt = attempt
        self._bookmark = bookmark
        self._next = bookmark.cursor
        self._queue: asyncio.Queue[OutgoingMessage] = asyncio.Queue()

    def has_published(self, offset: int) -> bool:
        """Return whether the progress file before ``offset`` has been published, by this daemon or an earlier one."""
        return offset <= self._bookmark.cursor.offset

    @property
    def started(self) -> bool:
        """Whether anything of this attempt was published."""
        return self._bookmark.cursor.sequence > 0

    def emit(self, kind: type[JobEvent], *, upto: int | None = None, **fields: Any) -> None:
        """Publish an event; with it, the progress file before offset ``upto`` counts as published."""
        if upto is not None:
            self._next = msgspec.structs.replace(self._next, offset=upto)
        self.publish(self.encode(kind, **fields))

    def encode(self, kind: type[JobEvent], **fields: Any) -> NumberedEvent:
        """Encode the next event; it must be published next."""
        sequence = self._next.sequence + 1
        event_id = f"{self._job_id}/{self._attempt}/{sequence}"
        numbers = {"job_id": self._job_id, "attempt": self._attempt, "sequence": sequence}
        encoded = self._publisher.state(kind, event_id, **numbers, **fields)
        return NumberedEvent(sequence=sequence, event_id=event_id, key=encoded.key, event=msgspec.Raw(encoded.body))

    def publish(self, event: NumberedEvent) -> None:
        """Publish the event, unless it has been published."""
        if event.sequence <= self._bookmark.cursor.sequence:
            return
        self._next = msgspec.structs.replace(self._next, sequence=event.sequence)
        self._put(self._publisher.exchange, event.key, event_message(event.event_id, bytes(event.event)))

    def write(self, entry: AnyEntry) -> None:
        """Write an entry into the ledger, in order with the events."""
        self._put("", self._publisher.ledger, persistent(msgspec.json.encode(entry)))

    def _put(self, exchange: str, key: str, message: Message) -> None:
        self._queue.put_nowait(OutgoingMessage(exchange=exchange, key=key, message=message, cursor=self._next))

    async def run(self) -> None:
        """Publish what is emitted, for ever."""
        while True:
            outgoing = await self._queue.get()
            await self._publish(outgoing.exchange, outgoing.key, outgoing.message)
            self._bookmark.move(outgoing.cursor)
            self._queue.task_done()

    async def flush(self) -> None:
        """Wait until all that was emitted is confirmed."""
        await self._queue.join()
