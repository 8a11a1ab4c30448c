"""The events of an attempt: numbered without holes, in order, each once, and never waited for by the trainer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aio_pika import DeliveryMode
from tests.support.owning import TIMEOUT, RecordingLink, a_reporter, own, publish_all, publish_some, publisher
from tests.support.runs import make_folder

from training_schemas.events import JobPhase, JobWarning, WorkerOffline, decode_event
from training_schemas.ledger import CheckpointSaved
from training_schemas.progress import Phase
from training_worker.attempts.event_outbox import EventOutbox
from training_worker.broker.event_publisher import EventPublisher, encoded_event
from training_worker.runs.run_directory import Bookmark, Cursor, RunDirectory


@pytest.fixture
async def connection() -> RecordingLink:
    """A link of this test."""
    return RecordingLink()


@pytest.fixture
def folder(tmp_path: Path) -> RunDirectory:
    """The folder of an attempt."""
    return make_folder(tmp_path)


async def test_events_are_numbered_from_one_and_published_in_order(connection: RecordingLink) -> None:
    """In each attempt again, whatever kinds they are."""
    for attempt in (1, 2):
        outbox = a_reporter(connection, attempt=attempt)
        outbox.emit(JobPhase, phase=Phase.TRAINING)
        outbox.emit(JobWarning, message="one")
        outbox.emit(JobWarning, message="two")
        await publish_all(outbox)

    published = [(type(event), event.attempt, event.sequence) for event in connection.events()]
    assert published == [
        (kind, attempt, sequence)
        for attempt in (1, 2)
        for kind, sequence in ((JobPhase, 1), (JobWarning, 2), (JobWarning, 3))
    ]


async def test_an_event_is_published_under_its_own_key_and_names_its_source(connection: RecordingLink) -> None:
    """The exchange is that of the fleet; the envelope's id is that of the event, for ever."""
    outbox = a_reporter(connection, attempt=2)
    outbox.emit(JobWarning, message="one")
    await publish_all(outbox)

    [(exchange, key, message)] = connection.published
    envelope = decode_event(message.body)
    assert (exchange, key) == ("studio.events", "job.portrait.warning")
    assert (envelope.id, envelope.source, envelope.subject) == ("portrait/2/1", "/training-worker/w1", "portrait")
    assert envelope.time.isoformat() == "1970-01-02T00:00:00+00:00"
    assert envelope.read() == JobWarning(
        worker="w1", simulated=True, job_id="portrait", attempt=2, sequence=1, message="one"
    )


async def test_an_event_survives_the_broker_and_can_be_identified_by_its_properties(connection: RecordingLink) -> None:
    """Persistent, with content type, id and type."""
    outbox = a_reporter(connection)
    outbox.emit(JobWarning, message="one")
    await publish_all(outbox)

    message = connection.published[0][2]
    assert message.delivery_mode is DeliveryMode.PERSISTENT
    assert message.content_type == "application/cloudevents+json"
    assert (message.message_id, message.type) == ("portrait/1/1", "training.job.warning.v1")


async def test_emitting_does_not_wait_for_a_broker_that_is_away(connection: RecordingLink) -> None:
    """Nothing is lost meanwhile, and a flush ends only when all of it is confirmed."""
    connection.back.clear()
    outbox = a_reporter(connection)
    running = asyncio.create_task(outbox.run())
    for number in range(100):
        outbox.emit(JobWarning, message=str(number))
    flushing = asyncio.create_task(outbox.flush())
    for _ in range(5):
        await asyncio.sleep(0)
    assert (connection.published, flushing.done()) == ([], False)

    connection.back.set()
    await asyncio.wait_for(flushing, TIMEOUT)

    assert [event.sequence for event in connection.events()] == list(range(1, 101))
    running.cancel()
    await asyncio.wait({running})


async def test_an_event_has_the_time_at_which_it_was_emitted(connection: RecordingLink) -> None:
    """Not that at which a broker came back."""
    times = iter([1.0, 2.0, 3.0])
    worker = EventPublisher(connection, "w1", simulated=False, clock=lambda: next(times))
    outbox = EventOutbox(worker, connection.publish, "portrait", 1, Bookmark(None))
    for _ in range(3):
        outbox.emit(JobWarning, message="one")
    await publish_all(outbox)

    assert [decode_event(message.body).time.timestamp() for _, _, message in connection.published] == [1.0, 2.0, 3.0]


async def test_a_worker_can_publish_events_of_its_own(connection: RecordingLink) -> None:
    """Such an event is about the worker, and its id is the speaker's choice."""
    worker = publisher(connection)
    await worker.publish(worker.state(WorkerOffline, "id-1", why="drained"))

    [(_, key, message)] = connection.published
    assert (key, message.message_id) == ("worker.w1.offline", "id-1")
    assert decode_event(message.body).read() == WorkerOffline(worker="w1", simulated=True, why="drained")


@pytest.mark.parametrize("fields", [{}, {"message": "one", "unheard_of": 1}])
async def test_an_event_that_lacks_a_field_is_an_error_of_the_caller(
    connection: RecordingLink, fields: dict[str, Any]
) -> None:
    """It is raised where the mistake is, not where events are published."""
    with pytest.raises(TypeError):
        a_reporter(connection).emit(JobWarning, **fields)


async def test_the_next_daemon_continues_with_the_next_number(connection: RecordingLink, folder: RunDirectory) -> None:
    """What was confirmed is published; what was not has its number again."""
    before = a_reporter(connection, folder)
    assert not before.started
    for number in (1, 2, 3):
        before.emit(JobWarning, upto=100 * number, message=str(number))
    await publish_some(before, connection, 2)

    connection = RecordingLink()
    after = a_reporter(connection, folder)
    assert after.started
    assert [after.has_published(offset) for offset in (100, 200, 201, 300)] == [True, True, False, False]
    after.emit(JobWarning, upto=300, message="3")
    await publish_all(after)

    assert [message.message_id for _, _, message in connection.published] == ["portrait/1/3"]
    assert after.has_published(300)
    assert Bookmark(folder).cursor == Cursor(sequence=3, offset=300)


async def test_nothing_counts_as_published_before_it_is_confirmed(
    connection: RecordingLink, folder: RunDirectory
) -> None:
    """The bookmark is where the broker is, not where the trainer is."""
    outbox = a_reporter(connection, folder)
    outbox.emit(JobWarning, upto=100, message="1")

    assert not outbox.has_published(100)
    assert not outbox.started
    await publish_all(outbox)
    assert outbox.has_published(100)


async def test_an_event_without_a_record_leaves_the_place_in_the_file(
    connection: RecordingLink, folder: RunDirectory
) -> None:
    """It is the daemon's own."""
    outbox = a_reporter(connection, folder)
    outbox.emit(JobWarning, upto=100, message="1")
    outbox.emit(JobWarning, message="2")
    await publish_all(outbox)

    assert Bookmark(folder).cursor == Cursor(sequence=2, offset=100)


async def test_entries_of_the_ledger_are_written_in_their_turn(connection: RecordingLink) -> None:
    """Whoever reads both sees them in one order; an entry has no number."""
    saved = own(connection).entry(CheckpointSaved, step=5, path="/c5")
    outbox = a_reporter(connection)
    outbox.emit(JobWarning, message="before")
    outbox.write(saved)
    outbox.emit(JobWarning, message="after")
    await publish_all(outbox)

    before, entry, after = connection.events_and_entries()
    assert entry == saved
    assert (before, after) == tuple(connection.events())
    assert [event.sequence for event in connection.events()] == [1, 2]
    assert connection.published[1][:2] == ("", "studio.ledger")
    assert connection.published[1][2].delivery_mode is DeliveryMode.PERSISTENT


async def test_encoded_events_are_published_as_they_are_and_only_once(
    connection: RecordingLink, folder: RunDirectory
) -> None:
    """The daemon that wrote them down may have died before or after it published them."""
    outbox = a_reporter(connection, folder)
    outbox.emit(JobWarning, message="one")
    encoded = outbox.encode(JobWarning, message="last")
    assert (encoded.sequence, encoded.event_id, encoded.key) == (2, "portrait/1/2", "job.portrait.warning")
    await publish_all(outbox)

    for _ in range(2):
        again = a_reporter(connection, folder)
        again.publish(encoded)
        await publish_all(again)

    assert len(connection.published) == 2
    _, key, message = connection.published[1]
    assert (key, message.body, message.message_id) == (encoded.key, bytes(encoded.event), encoded.event_id)
    assert message.type == "training.job.warning.v1"


async def test_a_published_event_can_be_published_again_from_its_body(connection: RecordingLink) -> None:
    """Byte for byte, under the same id and key."""
    outbox = a_reporter(connection)
    outbox.emit(JobWarning, message="one")
    await publish_all(outbox)
    _, key, message = connection.published[0]

    encoded = encoded_event(message.body)

    assert (encoded.key, encoded.message.body) == (key, message.body)
    assert (encoded.message.message_id, encoded.message.type) == (message.message_id, message.type)
