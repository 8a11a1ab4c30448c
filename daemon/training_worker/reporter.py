"""The reporter: publishes one attempt's events in their order, each with its sequence number."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from aio_pika import Message

from training_schemas.events import CONTENT_TYPE, Event, JobEvent, encode_event, routing_key, wrap
from training_worker.broker.link import Link
from training_worker.broker.session import persistent


class Statement(msgspec.Struct, frozen=True):
    """An event, ready to be published."""

    key: str
    message: Message


class Speaker:
    """Says things in the name of one worker."""

    def __init__(self, link: Link, worker: str, *, simulated: bool, clock: Callable[[], float]) -> None:
        self._link = link
        self._worker = worker
        self._simulated = simulated
        self._clock = clock

    def state(self, kind: type[Event], event_id: str, **fields: Any) -> Statement:
        """Put something into words; its time is now."""
        event = kind(worker=self._worker, simulated=self._simulated, **fields)
        body = encode_event(wrap(event, event_id=event_id, time=self._clock()))
        message = persistent(body, content_type=CONTENT_TYPE, message_id=event_id, type=event.TYPE)
        return Statement(routing_key(event), message)

    async def publish(self, statement: Statement) -> None:
        """Publish, for as long as it takes."""
        await self._link.publish(self._link.names.events, statement.key, statement.message)


class Reporter:
    """Numbers an attempt's events and hands them to a task that publishes them one after the other.

    `emit` never waits: a trainer is not held up by a broker that is away.
    """

    def __init__(self, speaker: Speaker, job_id: str, attempt: int) -> None:
        self._speaker = speaker
        self._job_id = job_id
        self._attempt = attempt
        self._sequence = 0
        self._queue: asyncio.Queue[Statement] = asyncio.Queue()

    def emit(self, kind: type[JobEvent], **fields: Any) -> None:
        """Say something about the job."""
        self._sequence += 1
        event_id = f"{self._job_id}/{self._attempt}/{self._sequence}"
        numbers = {"job_id": self._job_id, "attempt": self._attempt, "sequence": self._sequence}
        self._queue.put_nowait(self._speaker.state(kind, event_id, **numbers, **fields))

    async def run(self) -> None:
        """Publish what is emitted, for ever."""
        while True:
            await self._speaker.publish(await self._queue.get())
            self._queue.task_done()

    async def flush(self) -> None:
        """Wait until all that was emitted is confirmed."""
        await self._queue.join()
