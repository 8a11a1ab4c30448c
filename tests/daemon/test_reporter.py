"""What an attempt says: numbered without holes, published in order, and never waited for by the trainer."""

import asyncio
from typing import Any

import pytest
from aio_pika import DeliveryMode, Message

from training_schemas.events import JobEvent, JobPhase, JobWarning, WorkerOffline, decode_event
from training_schemas.progress import Phase
from training_worker.broker.link import Link
from training_worker.broker.names import Names
from training_worker.reporter import Reporter, Speaker

# Waiting in tests is bounded, and generous: the machine may be slow.
PATIENCE = 30.0


class RecordingLink(Link):
    """A link whose broker is a list; it can be away."""

    def __init__(self) -> None:
        super().__init__("amqp://nowhere/", Names("studio"), client="tests")
        self.published: list[tuple[str, str, Message]] = []
        self.back = asyncio.Event()
        self.back.set()

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        """Keep what is published, once the broker is there."""
        await self.back.wait()
        self.published.append((exchange, key, message))

    def events(self) -> list[JobEvent]:
        """What was said about jobs."""
        events = [decode_event(message.body).read() for _, _, message in self.published]
        return [event for event in events if isinstance(event, JobEvent)]


@pytest.fixture
async def link() -> RecordingLink:
    """A link of this test."""
    return RecordingLink()


def speaker(link: RecordingLink) -> Speaker:
    """A worker that trains on a stand-in, at a fixed time."""
    return Speaker(link, "w1", simulated=True, clock=lambda: 86_400.0)


async def told(reporter: Reporter) -> None:
    """Publish all that was emitted."""
    running = asyncio.create_task(reporter.run())
    await asyncio.wait_for(reporter.flush(), PATIENCE)
    running.cancel()
    await asyncio.wait({running})


async def test_events_are_numbered_from_one_and_published_in_order(link: RecordingLink) -> None:
    """In each attempt anew, whatever kinds they are."""
    for attempt in (1, 2):
        reporter = Reporter(speaker(link), "portrait", attempt)
        reporter.emit(JobPhase, phase=Phase.TRAINING)
        reporter.emit(JobWarning, message="one")
        reporter.emit(JobWarning, message="two")
        await told(reporter)

    said = [(type(event), event.attempt, event.sequence) for event in link.events()]
    assert said == [
        (kind, attempt, sequence)
        for attempt in (1, 2)
        for kind, sequence in ((JobPhase, 1), (JobWarning, 2), (JobWarning, 3))
    ]


async def test_an_event_is_published_under_its_own_key_and_says_who_speaks(link: RecordingLink) -> None:
    """The exchange is that of the fleet; the envelope's id is that of the event, for ever."""
    reporter = Reporter(speaker(link), "portrait", 2)
    reporter.emit(JobWarning, message="one")
    await told(reporter)

    [(exchange, key, message)] = link.published
    envelope = decode_event(message.body)
    assert (exchange, key) == ("studio.events", "job.portrait.warning")
    assert (envelope.id, envelope.source, envelope.subject) == ("portrait/2/1", "/training-worker/w1", "portrait")
    assert envelope.time.isoformat() == "1970-01-02T00:00:00+00:00"
    assert envelope.read() == JobWarning(
        worker="w1", simulated=True, job_id="portrait", attempt=2, sequence=1, message="one"
    )


async def test_an_event_survives_the_broker_and_can_be_told_by_its_properties(link: RecordingLink) -> None:
    """Persistent, with content type, id and type."""
    reporter = Reporter(speaker(link), "portrait", 1)
    reporter.emit(JobWarning, message="one")
    await told(reporter)

    message = link.published[0][2]
    assert message.delivery_mode is DeliveryMode.PERSISTENT
    assert message.content_type == "application/cloudevents+json"
    assert (message.message_id, message.type) == ("portrait/1/1", "training.job.warning.v1")


async def test_emitting_does_not_wait_for_a_broker_that_is_away(link: RecordingLink) -> None:
    """Nothing is lost meanwhile, and a flush ends only when all of it is confirmed."""
    link.back.clear()
    reporter = Reporter(speaker(link), "portrait", 1)
    running = asyncio.create_task(reporter.run())
    for number in range(100):
        reporter.emit(JobWarning, message=str(number))
    flushing = asyncio.create_task(reporter.flush())
    for _ in range(5):
        await asyncio.sleep(0)
    assert (link.published, flushing.done()) == ([], False)

    link.back.set()
    await asyncio.wait_for(flushing, PATIENCE)

    assert [event.sequence for event in link.events()] == list(range(1, 101))
    running.cancel()
    await asyncio.wait({running})


async def test_an_event_has_the_time_at_which_it_was_said(link: RecordingLink) -> None:
    """Not that at which a broker came back."""
    times = iter([1.0, 2.0, 3.0])
    reporter = Reporter(Speaker(link, "w1", simulated=False, clock=lambda: next(times)), "portrait", 1)
    for _ in range(3):
        reporter.emit(JobWarning, message="one")
    await told(reporter)

    assert [decode_event(message.body).time.timestamp() for _, _, message in link.published] == [1.0, 2.0, 3.0]


async def test_a_worker_can_speak_for_itself(link: RecordingLink) -> None:
    """Such an event is about the worker, and its id is the speaker's choice."""
    worker = speaker(link)
    await worker.publish(worker.state(WorkerOffline, "id-1", why="drained"))

    [(_, key, message)] = link.published
    assert (key, message.message_id) == ("worker.w1.offline", "id-1")
    assert decode_event(message.body).read() == WorkerOffline(worker="w1", simulated=True, why="drained")


@pytest.mark.parametrize("fields", [{}, {"message": "one", "unheard_of": 1}])
async def test_an_event_that_lacks_a_field_is_an_error_of_the_caller(
    link: RecordingLink, fields: dict[str, Any]
) -> None:
    """It is raised where the mistake is, not where events are published."""
    with pytest.raises(TypeError):
        Reporter(speaker(link), "portrait", 1).emit(JobWarning, **fields)
