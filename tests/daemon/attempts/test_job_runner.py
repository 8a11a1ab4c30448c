"""A run that an earlier daemon left is seen to its end without an event too many, and without one too few."""

import asyncio
from pathlib import Path

import pytest
from tests.support import runs
from tests.support.owning import TIMEOUT, RecordingLink, a_reporter, an_owner, own, publish_all, publish_some, publisher

from training_schemas.events import JobEvent
from training_worker.attempts.completion import Closing, Completion
from training_worker.attempts.control import ControlRequests
from training_worker.attempts.job_runner import JobRunner, SlotContext
from training_worker.attempts.outcome import Broken, Stopped
from training_worker.attempts.step_rates import StepRates
from training_worker.runs.run import Run
from training_worker.runs.standby import Standby
from training_worker.settings import Settings
from training_worker.storage.reservations import Reservations

# Written by a process of another boot: it has ended, and its id is not looked up.
GONE = "another-boot\n1 (sh) S 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1\n"


async def no_fault(_: str) -> None:
    """The GPU is healthy."""


async def never_crowded(_: str, __: int) -> bool:
    """All of its memory is free, too."""
    return False


class Life:
    """One daemon that finds the run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.connection = RecordingLink()
        self.ownership = own(self.connection)
        self.outbox = a_reporter(self.connection, run.folder)
        reservations = Reservations(Settings(state_dir=run.folder.path.parent))
        context = SlotContext(
            device=runs.GPU,
            settings=Settings(),
            owner=an_owner(self.connection),
            publisher=publisher(self.connection),
            observe=lambda _: None,
            rates=StepRates(run.folder.path.parent),
            standby=Standby(runs.GPU, Settings()),
            reservations=reservations,
            find_fault=no_fault,
            is_crowded=never_crowded,
        )
        reservation = reservations.make(run.spec.job_id)
        self.job = JobRunner(run.queued, self.ownership, ControlRequests(), context, reservation, found=run)

    async def decide(self) -> Closing:
        """See the run to its end, and write down what it comes to."""
        outcome = await asyncio.wait_for(self.job._train(self.outbox, self.run), TIMEOUT)
        assert isinstance(outcome, Broken)
        return Completion(self.run.queued, self.ownership, ControlRequests(), self.outbox, self.run).decide(
            outcome, [30]
        )


@pytest.mark.parametrize("confirmed", range(6))
async def test_what_was_not_published_before_the_decision_is_published_by_the_next_daemon(
    tmp_path: Path, confirmed: int
) -> None:
    """The broker was away when the trainer ended, and the daemon died before it was back."""
    run = runs.make_run(tmp_path)
    runs.append(run.folder, runs.phase(), runs.step(1), runs.step(2), runs.warning())
    run.folder.identity.write_text(GONE)
    run.folder.stdout.touch()
    first = Life(run)
    closing = await first.decide()
    await publish_some(first.outbox, first.connection, confirmed)

    second = Life(run)
    await asyncio.wait_for(second.job._train(second.outbox, run), TIMEOUT)
    second.outbox.publish(closing.last_event)
    await publish_all(second.outbox)

    published: list[JobEvent] = first.connection.events() + second.connection.events()
    assert [one.sequence for one in published] == [1, 2, 3, 4, 5, 6]
    assert [type(one).__name__ for one in published] == [
        "JobClaimed",
        "JobPhase",
        "JobProgress",
        "JobProgress",
        "JobWarning",
        "JobRetrying",
    ]


async def test_a_run_that_its_standby_trainer_never_received_has_not_failed(tmp_path: Path) -> None:
    """The daemon died while it handed the run over: the trainer is named there, but its output never went there."""
    run = runs.make_run(tmp_path)
    run.folder.identity.write_text(GONE)
    life = Life(run)

    outcome = await asyncio.wait_for(life.job._train(life.outbox, run), TIMEOUT)

    assert outcome == Stopped(step=run.record.resumed_step)
