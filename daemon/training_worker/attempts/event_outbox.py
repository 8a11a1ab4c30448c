"""The reporter: publishes one attempt's events in their order, each with its sequence number."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aio_pika import Message

from training_schemas.base import Wire
from training_schemas.events import JobEvent
from training_schemas.ledger import AnyEntry
from training_worker.broker.event_publisher import Speaker, event_message
from training_worker.broker.session import persistent
from training_worker.runs.run_directory import Bookmark, Cursor


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Something that waits to be published, and where the attempt's telling stands once it is."""

    exchange: str
    key: str
    message: Message
    cursor: Cursor


class Words(Wire, frozen=True, kw_only=True):
    """An attempt's last event, put into words: its number, its id, its routing key, and the event itself."""

    sequence: int
    event_id: str
    key: str
    event: msgspec.Raw


Publish = Callable[[str, str, Message], Awaitable[object]]


class Reporter:
    """Numbers an attempt's events and hands them to a task that publishes them one after the other.

    `emit` never waits: a trainer is not held up by a broker that is away. Entries of the ledger go the same way, so
    that everybody sees both in one order.

    Args:
        speaker: puts events into words.
        publish: publishes and waits for the confirm.
        job_id: whose attempt it is.
        attempt: its number.
        bookmark: how far an earlier daemon has come, and where it is kept; what was said is not said again.
    """

    def __init__(self, speaker: Speaker, publish: Publish, job_id: str, attempt: int, bookmark: Bookmark) -> None:
        self._speaker = speaker
        self._publish = publish
        self._job_id = job_id
        self._attempt = attempt
        self._bookmark = bookmark
        self._next = bookmark.cursor
        self._queue: asyncio.Queue[Said] = asyncio.Queue()

    def has_told(self, offset: int) -> bool:
        """Whether what stands in the progress file before ``offset`` has been told, by whichever daemon."""
        return offset <= self._bookmark.cursor.offset

    @property
    def started(self) -> bool:
        """Whether anything was said of this attempt."""
        return self._bookmark.cursor.sequence > 0

    def emit(self, kind: type[JobEvent], *, upto: int | None = None, **fields: Any) -> None:
        """Say something about the job; with it, all is told that the progress file holds before offset ``upto``."""
        if upto is not None:
            self._next = msgspec.structs.replace(self._next, offset=upto)
        self.say(self.word(kind, **fields))

    def word(self, kind: type[JobEvent], **fields: Any) -> Words:
        """Put the next thing to be said into words; it must be said next."""
        sequence = self._next.sequence + 1
        event_id = f"{self._job_id}/{self._attempt}/{sequence}"
        numbers = {"job_id": self._job_id, "attempt": self._attempt, "sequence": sequence}
        statement = self._speaker.state(kind, event_id, **numbers, **fields)
        return Words(sequence=sequence, event_id=event_id, key=statement.key, event=msgspec.Raw(statement.body))

    def say(self, words: Words) -> None:
        """Say it, unless it has been said."""
        if words.sequence <= self._bookmark.cursor.sequence:
            return
        self._next = msgspec.structs.replace(self._next, sequence=words.sequence)
        self._put(self._speaker.exchange, words.key, event_message(words.event_id, bytes(words.event)))

    def write(self, entry: AnyEntry) -> None:
        """Write into the ledger, in its turn."""
        self._put("", self._speaker.ledger, persistent(msgspec.json.encode(entry)))

    def _put(self, exchange: str, key: str, message: Message) -> None:
        self._queue.put_nowait(Said(exchange=exchange, key=key, message=message, cursor=self._next))

    async def run(self) -> None:
        """Publish what is emitted, for ever."""
        while True:
            said = await self._queue.get()
            await self._publish(said.exchange, said.key, said.message)
            self._bookmark.move(said.cursor)
            self._queue.task_done()

    async def flush(self) -> None:
        """Wait until all that was emitted is confirmed."""
        await self._queue.join()
