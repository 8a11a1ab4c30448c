"""What is needed to publish events of a job and to own it, without a broker: what is published ends in a list."""

import asyncio
from typing import Any

import msgspec
from aio_pika import Message

from training_presets.planner import plan_job
from training_schemas.events import JobEvent, decode_event
from training_schemas.ledger import AnyEntry, decode_entry
from training_worker.attempts.event_outbox import EventOutbox
from training_worker.broker.connection import Connection
from training_worker.broker.event_publisher import EventPublisher
from training_worker.broker.names import Names
from training_worker.client.job_builder import flux_lora_job
from training_worker.ledger.job_history import ClaimRecord, JobHistory
from training_worker.ledger.ledger import Ledger
from training_worker.ownership.ownership import Owner, Ownership
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.run_directory import Bookmark, RunDirectory

# Waiting in tests is bounded, and generous: the machine may be slow.
TIMEOUT = 30.0
NOW = 86_400.0


class RecordingLink(Connection):
    """A link whose broker is a list; it can be away."""

    def __init__(self) -> None:
        super().__init__("amqp://nowhere/", Names("studio"), client="tests")
        self.published: list[tuple[str, str, Message]] = []
        self.back = asyncio.Event()
        self.back.set()
        self.left: int | None = None
        """How many messages it accepts until it is away for good."""

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        """Keep what is published, once the broker is there."""
        if self.left == 0:
            self.back.clear()
        await self.back.wait()
        if self.left is not None:
            self.left -= 1
        self.published.append((exchange, key, message))

    def events_and_entries(self) -> list[JobEvent | AnyEntry]:
        """What was published about jobs, as events and to the ledger, in its order."""
        found: list[JobEvent | AnyEntry] = []
        for exchange, _, message in self.published:
            if exchange == "":
                found.append(decode_entry(message.body))
            elif isinstance(event := decode_event(message.body).read(), JobEvent):
                found.append(event)
        return found

    def events(self) -> list[JobEvent]:
        """The events that were published."""
        return [one for one in self.events_and_entries() if isinstance(one, JobEvent)]


def a_queued_job(**fields: Any) -> QueuedJob:
    """A job, as it lies in a queue."""
    paths = {"job_id": "portrait", "dataset_path": "/datasets/set", "output_path": "/models/portrait"}
    job = flux_lora_job(**(paths | fields))
    return QueuedJob(job=job, plan=plan_job(job), submitted_at=1000.0)


def publisher(connection: Connection) -> EventPublisher:
    """A worker that trains on a stand-in, at a fixed time."""
    return EventPublisher(connection, "w1", simulated=True, clock=lambda: NOW)


def an_owner(connection: Connection) -> Owner:
    """A worker that could own jobs."""
    return Owner(
        connection=connection,
        ledger=Ledger(connection, clock=lambda: NOW),
        publisher=publisher(connection),
        worker="w1",
        lease=120.0,
        grace=30,
        clock=lambda: NOW,
    )


def own(connection: Connection, queued: QueuedJob | None = None, before: JobHistory | None = None) -> Ownership:
    """The ownership of a job that nobody holds yet."""
    claim_record = ClaimRecord(claim="c1", before=before or JobHistory())
    return Ownership(an_owner(connection), queued or a_queued_job(), claim_record, inbox=lambda _: None)


def a_reporter(connection: Connection, folder: RunDirectory | None = None, attempt: int = 1) -> EventOutbox:
    """Who publishes the events of an attempt at that job."""
    return EventOutbox(publisher(connection), connection.publish, "portrait", attempt, Bookmark(folder))


async def publish_all(outbox: EventOutbox) -> None:
    """Publish all that was emitted."""
    running = asyncio.create_task(outbox.run())
    await asyncio.wait_for(outbox.flush(), TIMEOUT)
    running.cancel()
    await asyncio.wait({running})


async def publish_some(outbox: EventOutbox, connection: RecordingLink, count: int) -> None:
    """Publish so many messages of what was emitted, and die."""
    connection.left = count
    running = asyncio.create_task(outbox.run())
    for _ in range(10 * count + 10):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})


def over_the_wire(value: msgspec.Struct) -> Any:
    """The same, written down and read again."""
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value))
