"""What is asked of jobs and workers, and what whoever asks is answered."""

import asyncio
import signal
import time

import msgspec
import pytest
from tests.support.command_line import run
from tests.support.fleet import CARD_8, TIMEOUT, Fleet

from training_schemas.events import JobCancelled, JobClaimed, JobProgress, WorkerOnline
from training_worker.client.fleet import WorkerState
from training_worker.client.results import CancelAnswer, CancelState

pytestmark = pytest.mark.broker


async def answer(fleet: Fleet, job_id: str = "portrait") -> tuple[int, str]:
    """Exit status and words of ``cancel``."""
    done = await run(fleet, "cancel", job_id)
    return done.returncode, done.stdout.strip()


async def test_a_running_job_is_cancelled_by_the_worker_that_trains_it(fleet: Fleet) -> None:
    """The answer names it and its attempt, even if it is faster than the answer."""
    daemon = await fleet.start(mode="slow")
    await fleet.submit("portrait", max_train_steps=600)
    await fleet.until("portrait", JobProgress)

    asked = await fleet.api.cancel("portrait")

    assert asked == CancelAnswer(job_id="portrait", state=CancelState.RUNNING, worker="w1", attempt=1)
    await daemon.until_logged("job_ended")
    assert await answer(fleet) == (0, "portrait: cancelled before; nothing to cancel")


async def test_a_waiting_job_is_cancelled_by_whoever_takes_it(fleet: Fleet) -> None:
    """Nobody trains it yet."""
    daemon = await fleet.start("small", gpus=[CARD_8])
    await fleet.submit("portrait")
    await daemon.until_logged("queued")

    assert await answer(fleet) == (0, "portrait: waiting; the worker that claims it will cancel it")

    await fleet.start("large")
    assert isinstance((await fleet.events("portrait"))[-1], JobCancelled)


@pytest.mark.parametrize(("mode", "state"), [("ok", "completed"), ("crash", "failed")])
async def test_a_job_that_had_ended_is_said_to_have(fleet: Fleet, mode: str, state: str) -> None:
    """And nothing changes that."""
    daemon = await fleet.start(mode=mode)
    await fleet.submit("portrait", max_attempts=1)
    await daemon.until_logged("job_ended")

    assert await answer(fleet) == (1, f"portrait: {state} before; nothing to cancel")


async def test_a_job_that_nobody_knows_is_said_to_be_unknown(fleet: Fleet) -> None:
    """Also if it was asked for before."""
    expected = (1, "nobody: unknown; nothing was written about it in the last day")

    assert await answer(fleet, "nobody") == expected
    assert await answer(fleet, "nobody") == expected


async def test_whoever_trains_a_job_takes_its_commands(fleet: Fleet) -> None:
    """True says that an owner has them."""
    await fleet.start(mode="slow")
    await fleet.submit("portrait", max_train_steps=600)
    await fleet.until("portrait", JobProgress)

    assert await fleet.api.checkpoint_now("portrait")
    assert await fleet.api.sample_now("portrait")
    asked = await run(fleet, "checkpoint", "portrait")

    assert (asked.returncode, asked.stdout) == (0, "portrait: asked its worker for a checkpoint\n")


@pytest.mark.parametrize("command", ["checkpoint", "sample"])
async def test_a_job_that_nobody_trains_takes_no_commands(fleet: Fleet, command: str) -> None:
    """It is said in a line, with status 1."""
    done = await run(fleet, command, "portrait")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "training-worker: nobody trains portrait now\n"


async def test_a_paused_worker_takes_nothing_until_it_is_resumed(fleet: Fleet) -> None:
    """One worker by its id."""
    daemon = await fleet.start("w1")
    await fleet.all_events(1, WorkerOnline)
    paused = await run(fleet, "pause", "w1")
    await daemon.until_logged("command")
    await fleet.submit("portrait")
    await daemon.until_logged("queued")
    assert daemon.logged("claimed") == []

    resumed = await run(fleet, "resume", "w1")

    assert (paused.stdout, resumed.stdout) == ("w1: sent pause\n", "w1: sent resume\n")
    assert isinstance(await fleet.until("portrait", JobClaimed), JobClaimed)


async def test_the_fleet_is_shown_with_what_each_worker_does(fleet: Fleet) -> None:
    """One that trains, one that is paused, one that has left; whoever asks has heard none of them come."""
    gone = await fleet.start("w3", gpus=[CARD_8])
    await fleet.all_events(1, WorkerOnline)
    gone.signal(signal.SIGTERM)
    await gone.ended()
    await fleet.start("w1", mode="slow", heartbeat=0.3)
    await fleet.submit("portrait", max_train_steps=600)
    await fleet.until("portrait", JobProgress)
    await fleet.start("w2", gpus=[CARD_8], heartbeat=0.3)
    await fleet.all_events(3, WorkerOnline)
    await fleet.api.pause("w2")
    await asyncio.sleep(1)

    as_json = await run(fleet, "workers", "--json")
    table = await run(fleet, "workers")

    states = msgspec.json.decode(as_json.stdout, type=list[WorkerState])
    assert [(one.worker, one.condition, one.simulated) for one in states] == [
        ("w1", "open", True),
        ("w2", "paused", True),
        ("w3", "offline", True),
    ]
    assert [[device.job for device in one.cards] for one in states] == [["portrait"], [None], []]
    assert all(time.time() - one.last_seen_at < TIMEOUT for one in states)
    assert (as_json.returncode, table.returncode) == (0, 0)
    lines = table.stdout.splitlines()
    assert [all(word in line for word in ("w1", "open", "portrait", "RTX")) for line in lines].count(True) == 1
    assert [all(word in line for word in ("w3", "offline: SIGTERM")) for line in lines].count(True) == 1


async def test_a_fleet_without_workers_is_said_to_have_none(fleet: Fleet) -> None:
    """With status 1, also where no worker has ever been; in JSON it is an empty list."""
    table, as_json = await run(fleet, "workers"), await run(fleet, "workers", "--json")

    assert (table.returncode, table.stderr) == (1, "training-worker: no worker was online within the last minutes\n")
    assert (as_json.returncode, as_json.stdout) == (1, "[]\n")


async def test_all_workers_are_drained_at_once(fleet: Fleet) -> None:
    """Each finishes and ends with status 0."""
    daemons = [await fleet.start(name) for name in ("w1", "w2")]
    # A worker listens before it says that it is there.
    await fleet.all_events(2, WorkerOnline)

    done = await run(fleet, "drain", "all")

    assert (done.returncode, done.stdout) == (0, "all: sent drain\n")
    assert [await asyncio.wait_for(daemon.ended(), TIMEOUT) for daemon in daemons] == [0, 0]


@pytest.mark.parametrize("command", ["drain", "pause", "resume"])
@pytest.mark.parametrize(("worker", "who"), [("w9", "no worker w9"), ("all", "no worker")])
async def test_a_worker_that_is_not_there_is_said_to_be_missing(
    fleet: Fleet, command: str, worker: str, who: str
) -> None:
    """With status 1: an operator relies on it."""
    done = await run(fleet, command, worker)

    assert (done.returncode, done.stderr) == (1, f"training-worker: {who} is connected\n")
