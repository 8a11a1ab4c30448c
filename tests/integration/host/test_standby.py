"""Trainers that wait, through the queue: who trains, what is published, and what is left when the daemon ends."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.support import real_training
from tests.support.fleet import TIMEOUT, Daemon, Fleet
from tests.support.nvml import Host
from tests.support.processes import is_gone

from training_schemas.events import JobClaimed, JobCompleted, JobEvent, JobProgress

pytestmark = pytest.mark.broker

GPU = "gpu 0 24564 GPU-1 NVIDIA GeForce RTX 4090"


async def ready(daemon: Daemon, count: int = 1) -> list[int]:
    """Wait until so many trainers have waited; their process ids."""
    return [entry["pid"] for entry in await daemon.until_logged("standby_ready", count)]


def started(daemon: Daemon) -> list[tuple[int, bool]]:
    """The trainers that were given a job, and whether they had waited for it."""
    return [(entry["pid"], entry["standby"]) for entry in daemon.logged("trainer_started")]


def summary(events: list[JobEvent]) -> list[tuple[str, int, int]]:
    """What was published, without what differs from job to job."""
    return [(type(event).__name__, event.attempt, event.sequence) for event in events]


async def test_jobs_are_trained_by_the_trainers_that_waited_for_them(fleet: Fleet) -> None:
    """One for each job, and what is published of it is what is always published."""
    cold = await fleet.start("cold")
    await fleet.submit("usual")
    usual = await fleet.events("usual")
    cold.signal(signal.SIGTERM)
    await cold.ended()
    daemon = await fleet.start("warm", standby=True)

    for number, job in enumerate(("first", "second"), start=1):
        await ready(daemon, number)
        await fleet.submit(job)
        assert summary(await fleet.events(job)) == summary(usual)
        await daemon.until_logged("job_ended", number)

    first, second, waits = await ready(daemon, 3)
    assert started(daemon) == [(first, True), (second, True)]
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0
    assert is_gone(waits, TIMEOUT)


async def test_no_trainer_waits_while_another_one_trains(fleet: Fleet) -> None:
    """Memory and cores are the job's; the next trainer waits once it has ended."""
    daemon = await fleet.start(mode="slow", standby=True)
    await ready(daemon)
    await fleet.submit("portrait", max_train_steps=8)
    await fleet.until("portrait", JobProgress, count=4)

    assert len(daemon.logged("standby_ready")) == 1
    assert list((fleet.folder / "state-w1" / "standby").glob("*/*")) == []

    await fleet.events("portrait")
    assert len(await ready(daemon, 2)) == 2


async def test_where_no_trainer_waits_any_more_one_is_started(fleet: Fleet) -> None:
    """Somebody killed it: no event of the job shows that."""
    daemon = await fleet.start(standby=True)
    (waiting,) = await ready(daemon)
    os.killpg(waiting, signal.SIGKILL)
    await daemon.until_logged("standby_ended")
    await fleet.submit("portrait")

    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)
    [(pid, waited)] = started(daemon)
    assert (pid != waiting, waited) == (True, False)


async def test_a_killed_daemon_re_attaches_to_a_trainer_that_had_waited(fleet: Fleet) -> None:
    """It is known like any other; each step is trained and published once."""
    first = await fleet.start(mode="slow", standby=True)
    (waiting,) = await ready(first)
    await fleet.submit("portrait", max_train_steps=20)
    await fleet.until("portrait", JobProgress, count=3)

    first.kill()
    second = await fleet.start(mode="slow", standby=True)
    events = await fleet.events("portrait")

    assert isinstance(events[-1], JobCompleted), events[-1]
    assert [entry["pid"] for entry in second.logged("trainer_found")] == [waiting]
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, 21))
    assert len([event for event in events if isinstance(event, JobClaimed)]) == 1
    assert len(await ready(second)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_no_trainer_waits_for_a_daemon_that_has_ended(fleet: Fleet, number: signal.Signals) -> None:
    """However it ended."""
    daemon = await fleet.start(standby=True)
    (waiting,) = await ready(daemon)

    daemon.signal(number)

    await daemon.ended()
    assert is_gone(waiting, TIMEOUT)


async def test_a_daemon_that_is_re_executed_has_a_new_trainer_waiting(fleet: Fleet) -> None:
    """The old one is of another version, perhaps; nothing of it stays, not even for its parent to reap."""
    daemon = await fleet.start(standby=True)
    await ready(daemon)

    daemon.signal(signal.SIGHUP)
    old, new = await ready(daemon, 2)

    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)
    await fleet.submit("portrait")
    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)
    assert started(daemon) == [(new, True)]


async def test_a_trainer_that_runs_is_left_to_the_daemon_that_comes_next(fleet: Fleet) -> None:
    """SIGHUP ends those that wait, and never those that train."""
    daemon = await fleet.start(mode="slow", standby=True)
    (waiting,) = await ready(daemon)
    await fleet.submit("portrait", max_train_steps=20)
    await fleet.until("portrait", JobProgress, count=3)

    daemon.signal(signal.SIGHUP)
    events = await fleet.events("portrait")

    assert isinstance(events[-1], JobCompleted), events[-1]
    assert [entry["pid"] for entry in daemon.logged("trainer_found")] == [waiting]


@pytest.mark.trainer
async def test_the_real_trainer_waits_and_trains(fleet: Fleet, materials: Path) -> None:
    """Killed in between, the daemon re-attaches to it; no step is lost."""
    engine: dict[str, Any] = real_training.TRAINER["diffusers"] | {"standby": True}
    first = await real_training.start(fleet, materials, "w1", engines={"diffusers": engine})
    (waiting,) = await ready(first)
    await real_training.submit(fleet, max_train_steps=60)
    await fleet.until(real_training.JOB, JobProgress, count=3)

    first.kill()
    second = await real_training.start(fleet, materials, "w1", engines={"diffusers": engine})
    events = await fleet.events(real_training.JOB)

    assert isinstance(events[-1], JobCompleted), events[-1]
    assert started(first) == [(waiting, True)]
    assert [entry["pid"] for entry in second.logged("trainer_found")] == [waiting]
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, 61))


async def test_no_trainer_waits_on_a_gpu_that_is_quarantined(fleet: Fleet, host: Host) -> None:
    """Whoever resets it needs it free; once it is back, a new one waits."""
    host.describe(GPU, "temperature 60")
    fleet.host = host.variables
    daemon = await fleet.start(standby=True, card_check_interval=0.2, healthy_probes=1)
    (waiting,) = await ready(daemon)

    host.describe(GPU, "temperature 99")
    await daemon.until_logged("card_quarantined")
    assert is_gone(waiting, TIMEOUT)
    assert len(daemon.logged("standby_ready")) == 1

    host.describe(GPU, "temperature 60")
    _, new = await ready(daemon, 2)
    await fleet.submit("portrait")
    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)
    assert started(daemon) == [(new, True)]


async def test_no_trainer_waits_in_a_worker_that_is_paused(fleet: Fleet) -> None:
    """Its GPUs are somebody else's for now."""
    daemon = await fleet.start(standby=True)
    (waiting,) = await ready(daemon)

    await fleet.api.pause("w1")
    assert await asyncio.to_thread(is_gone, waiting, TIMEOUT)

    await fleet.api.resume("w1")
    assert len(await ready(daemon, 2)) == 2
