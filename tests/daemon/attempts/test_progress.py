"""What a trainer records becomes events: each exactly once, however many daemons come and go on the way."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import runs
from tests.support.owning import NOW, TIMEOUT, RecordingLink, a_reporter, own, publish_all, publish_some

from training_schemas.events import JobCheckpoint, JobDataset, JobEvent, JobPhase, JobProgress, JobSample, JobWarning
from training_schemas.ledger import AnyEntry, CheckpointSaved
from training_schemas.progress import AnyRecord, FailureReason, Phase
from training_worker.attempts.event_outbox import EventOutbox
from training_worker.attempts.progress import ProgressReader
from training_worker.attempts.usage import UsageMeter
from training_worker.ownership.ownership import Ownership
from training_worker.runs.run_directory import RunDirectory


class Desk:
    """One daemon's reports of a run: it can be the first one, or one that comes later."""

    def __init__(self, folder: RunDirectory, *, resumes: bool = True) -> None:
        self.folder = folder
        self.connection = RecordingLink()
        self.ownership: Ownership = own(self.connection)
        self.outbox: EventOutbox = a_reporter(self.connection, folder)
        self.meter = UsageMeter(3.6, started=NOW - 100, clock=lambda: NOW)
        self.progress = ProgressReader(
            folder, self.meter, self.outbox, self.ownership, runs.unmeasured(), saved_step=0, resumes=resumes
        )

    async def follow(self) -> None:
        """Read all that is there."""
        ended = asyncio.Event()
        ended.set()
        await asyncio.wait_for(self.progress.follow(ended), TIMEOUT)

    async def publish(self) -> list[JobEvent | AnyEntry]:
        """Read all that is there, and publish it."""
        await self.follow()
        await publish_all(self.outbox)
        return self.connection.events_and_entries()

    async def publish_some(self, count: int) -> list[JobEvent | AnyEntry]:
        """Read all that is there, publish a part of it, and die."""
        await self.follow()
        await publish_some(self.outbox, self.connection, count)
        return self.connection.events_and_entries()


@pytest.fixture
def folder(tmp_path: Path) -> RunDirectory:
    """The folder of a run."""
    return runs.make_folder(tmp_path)


async def test_each_kind_of_record_is_published_as_its_own_event(folder: RunDirectory) -> None:
    """In the order of the file; a checkpoint is written into the ledger first."""
    records: list[AnyRecord] = [
        runs.phase(),
        runs.dataset(),
        runs.step(1),
        runs.checkpoint(1),
        runs.sample(1),
        runs.warning(),
        runs.done(),
    ]
    runs.append(folder, *records)

    published = await Desk(folder).publish()

    assert [type(one) for one in published] == [
        JobPhase,
        JobDataset,
        JobProgress,
        CheckpointSaved,
        JobCheckpoint,
        JobSample,
        JobWarning,
    ]


async def test_a_step_is_published_with_pace_cost_and_what_is_left(folder: RunDirectory) -> None:
    """All that a dashboard shows."""
    runs.append(folder, runs.phase(), runs.step(1, at=1000.0), runs.step(2, loss=0.25, at=1002.0))

    event = (await Desk(folder).publish())[-1]

    assert isinstance(event, JobProgress)
    assert (event.phase, event.step, event.total_steps, event.loss) == (Phase.TRAINING, 2, 100, 0.25)
    assert (event.usage.gpu_seconds, event.usage.cost_usd) == (100.0, 0.1)
    assert (event.steps_per_minute, event.seconds_left) == (30.0, 196.0)


async def test_a_checkpoint_is_remembered_by_whoever_owns_the_job(folder: RunDirectory) -> None:
    """Also by the daemon that comes later, which does not publish it."""
    runs.append(folder, runs.checkpoint(5))
    await Desk(folder).publish()
    later = Desk(folder)

    assert await later.publish() == []
    assert later.progress.saved_step == 5
    assert later.ownership.history.saved_step == 5


async def test_a_checkpoint_that_nothing_resumes_from_is_published_and_not_remembered(folder: RunDirectory) -> None:
    """It is there to be tried; what was done up to it is lost all the same if the attempt ends."""
    runs.append(folder, runs.checkpoint(5))
    desk = Desk(folder, resumes=False)

    assert [type(one) for one in await desk.publish()] == [JobCheckpoint]
    assert desk.progress.saved_step == 0
    assert desk.ownership.history.saved_step == 0


async def test_a_file_is_published_while_it_is_written(folder: RunDirectory) -> None:
    """The phase and the last sign are those of the last record."""
    desk, ended = Desk(folder), asyncio.Event()
    following = asyncio.create_task(desk.progress.follow(ended))
    for name in (Phase.CACHING_LATENTS, Phase.TRAINING):
        began = desk.progress.last_at
        runs.append(folder, runs.phase(name))
        await asyncio.wait_for(desk.progress.phase_began.wait(), TIMEOUT)
        desk.progress.phase_began.clear()
        assert desk.progress.phase == name
        assert desk.progress.last_at > began
    ended.set()
    await asyncio.wait_for(following, TIMEOUT)


async def test_a_line_that_cannot_be_read_is_passed_over(folder: RunDirectory) -> None:
    """A trainer of another version may record more than we understand."""
    runs.append(folder, runs.step(1))
    with folder.progress.open("ab") as file:
        file.write(b'{"record": "weather", "sequence": 2, "time": 1.0}\n\xff\n\n')
    runs.append(folder, runs.step(2))

    published = await Desk(folder).publish()

    assert [one.step for one in published if isinstance(one, JobProgress)] == [1, 2]
    assert await Desk(folder).publish() == []


async def test_a_loss_that_is_not_finite_raises_the_alarm_and_is_not_published(folder: RunDirectory) -> None:
    """The first reason stays; JSON cannot express such a number."""
    runs.append(folder, runs.step(1), runs.step(2, loss=None), runs.step(3, loss=None))
    desk = Desk(folder)

    published = await desk.publish()
    desk.progress.raise_alarm(FailureReason.STALLED, "later")

    assert [one.step for one in published if isinstance(one, JobProgress)] == [1]
    assert desk.progress.alarm.is_set()
    assert desk.progress.trouble is not None
    assert desk.progress.trouble.reason == FailureReason.LOSS_NOT_FINITE
    assert desk.progress.trouble.message == "cannot go on: the loss of step 2 is not finite"


async def test_the_alarm_is_raised_by_what_an_earlier_daemon_read_as_well(folder: RunDirectory) -> None:
    """It may have died before it could stop the trainer."""
    runs.append(folder, runs.step(1, loss=None), runs.step(2))
    await Desk(folder).publish()
    later = Desk(folder)

    assert await later.publish() == []
    assert later.progress.alarm.is_set()


async def test_the_longest_step_is_measured_within_a_phase(folder: RunDirectory) -> None:
    """What lies between is no step."""
    steps = [runs.step(1, at=0.0), runs.step(2, at=3.0), runs.step(3, at=4.0)]
    runs.append(folder, runs.phase(), *steps, runs.phase(Phase.SAMPLING), runs.phase(), runs.step(4, at=100.0))
    desk = Desk(folder)
    await desk.follow()

    assert desk.progress.longest_step == 3.0


kinds = st.sampled_from(
    [
        runs.phase(),
        runs.step(1),
        runs.step(2, loss=None),
        runs.checkpoint(3),
        runs.sample(4),
        runs.warning("a"),
        runs.warning("b"),
        runs.stopped(5),
    ]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(kinds, min_size=1, max_size=8), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9)), max_size=3))
def test_several_daemons_together_publish_every_event_exactly_once(
    records: list[AnyRecord], lives: list[tuple[int, int]]
) -> None:
    """Each reads so many records more, publishes so many messages, dies; the last one publishes all that is left."""

    async def check() -> None:
        with TemporaryDirectory() as state, TemporaryDirectory() as other:
            whole = runs.make_folder(Path(other))
            runs.append(whole, *records)
            expected = [without_time(one) for one in await Desk(whole).publish()]
            folder = runs.make_folder(Path(state))
            unwritten, published = list(records), []
            for more, count in lives:
                runs.append(folder, *unwritten[:more])
                del unwritten[:more]
                published += await Desk(folder).publish_some(count)
            runs.append(folder, *unwritten)
            published += await Desk(folder).publish()

        events = [without_time(one) for one in published if isinstance(one, JobEvent)]
        assert events == [one for one in expected if isinstance(one, JobEvent)]
        assert [one.sequence for one in published if isinstance(one, JobEvent)] == list(range(1, len(events) + 1))
        # An entry may be written again by the next daemon; never left out, nor written after its event.
        entries = [one for one in published if isinstance(one, CheckpointSaved)]
        assert len(entries) >= sum(isinstance(one, CheckpointSaved) for one in expected)

    asyncio.run(check())


def without_time(one: JobEvent | AnyEntry) -> JobEvent | AnyEntry:
    """The pace depends on what a daemon has seen of the run."""
    return msgspec.structs.replace(one, steps_per_minute=None) if isinstance(one, JobProgress) else one
