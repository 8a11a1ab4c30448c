"""What an attempt says: numbered without holes, in order, each thing once, and never waited for by the trainer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aio_pika import DeliveryMode
from tests.support.owning import PATIENCE, RecordingLink, a_reporter, own, speaker, told, told_in_part
from tests.support.runs import make_folder

from training_schemas.events import JobPhase, JobWarning, WorkerOffline, decode_event
from training_schemas.ledger import CheckpointSaved
from training_schemas.progress import Phase
from training_worker.attempts.event_outbox import Reporter
from training_worker.broker.event_publisher import Speaker, retell
from training_worker.runs.run_directory import Bookmark, Cursor, RunFolder


@pytest.fixture
async def link() -> RecordingLink:
    """A link of this test."""
    return RecordingLink()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of an attempt."""
    return make_folder(tmp_path)


async def test_events_are_numbered_from_one_and_published_in_order(link: RecordingLink) -> None:
    """In each attempt anew, whatever kinds they are."""
    for attempt in (1, 2):
        reporter = a_reporter(link, attempt=attempt)
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
    reporter = a_reporter(link, attempt=2)
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
    reporter = a_reporter(link)
    reporter.emit(JobWarning, message="one")
    await told(reporter)

    message = link.published[0][2]
    assert message.delivery_mode is DeliveryMode.PERSISTENT
    assert message.content_type == "application/cloudevents+json"
    assert (message.message_id, message.type) == ("portrait/1/1", "training.job.warning.v1")


async def test_emitting_does_not_wait_for_a_broker_that_is_away(link: RecordingLink) -> None:
    """Nothing is lost meanwhile, and a flush ends only when all of it is confirmed."""
    link.back.clear()
    reporter = a_reporter(link)
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
    worker = Speaker(link, "w1", simulated=False, clock=lambda: next(times))
    reporter = Reporter(worker, link.publish, "portrait", 1, Bookmark(None))
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
        a_reporter(link).emit(JobWarning, **fields)


async def test_the_next_daemon_goes_on_with_the_next_number(link: RecordingLink, folder: RunFolder) -> None:
    """What was confirmed is told; what was not has its number again."""
    before = a_reporter(link, folder)
    assert not before.started
    for number in (1, 2, 3):
        before.emit(JobWarning, upto=100 * number, message=str(number))
    await told_in_part(before, link, 2)

    link = RecordingLink()
    after = a_reporter(link, folder)
    assert after.started
    assert [after.has_told(offset) for offset in (100, 200, 201, 300)] == [True, True, False, False]
    after.emit(JobWarning, upto=300, message="3")
    await told(after)

    assert [message.message_id for _, _, message in link.published] == ["portrait/1/3"]
    assert after.has_told(300)
    assert Bookmark(folder).cursor == Cursor(sequence=3, offset=300)


async def test_nothing_is_told_before_it_is_confirmed(link: RecordingLink, folder: RunFolder) -> None:
    """The bookmark is where the broker is, not where the trainer is."""
    reporter = a_reporter(link, folder)
    reporter.emit(JobWarning, upto=100, message="1")

    assert not reporter.has_told(100)
    assert not reporter.started
    await told(reporter)
    assert reporter.has_told(100)


async def test_an_event_without_a_record_leaves_the_place_in_the_file(link: RecordingLink, folder: RunFolder) -> None:
    """It is the daemon's own."""
    reporter = a_reporter(link, folder)
    reporter.emit(JobWarning, upto=100, message="1")
    reporter.emit(JobWarning, message="2")
    await told(reporter)

    assert Bookmark(folder).cursor == Cursor(sequence=2, offset=100)


async def test_entries_of_the_ledger_are_written_in_their_turn(link: RecordingLink) -> None:
    """Whoever reads both sees them in one order; an entry has no number."""
    saved = own(link).entry(CheckpointSaved, step=5, path="/c5")
    reporter = a_reporter(link)
    reporter.emit(JobWarning, message="before")
    reporter.write(saved)
    reporter.emit(JobWarning, message="after")
    await told(reporter)

    before, entry, after = link.said()
    assert entry == saved
    assert (before, after) == tuple(link.events())
    assert [event.sequence for event in link.events()] == [1, 2]
    assert link.published[1][:2] == ("", "studio.ledger")
    assert link.published[1][2].delivery_mode is DeliveryMode.PERSISTENT


async def test_words_are_said_as_they_were_put_and_only_once(link: RecordingLink, folder: RunFolder) -> None:
    """The daemon that wrote them down may have died before or after it said them."""
    reporter = a_reporter(link, folder)
    reporter.emit(JobWarning, message="one")
    words = reporter.word(JobWarning, message="last")
    assert (words.sequence, words.event_id, words.key) == (2, "portrait/1/2", "job.portrait.warning")
    await told(reporter)

    for _ in range(2):
        again = a_reporter(link, folder)
        again.say(words)
        await told(again)

    assert len(link.published) == 2
    _, key, message = link.published[1]
    assert (key, message.body, message.message_id) == (words.key, bytes(words.event), words.event_id)
    assert message.type == "training.job.warning.v1"


async def test_what_was_said_can_be_said_again_from_its_body(link: RecordingLink) -> None:
    """Byte for byte, under the same id and key."""
    reporter = a_reporter(link)
    reporter.emit(JobWarning, message="one")
    await told(reporter)
    _, key, message = link.published[0]

    statement = retell(message.body)

    assert (statement.key, statement.message.body) == (key, message.body)
    assert (statement.message.message_id, statement.message.type) == (message.message_id, message.type)
