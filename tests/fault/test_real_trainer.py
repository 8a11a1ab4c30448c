"""The faults that cost most when they go wrong, with real training: nothing but the last few steps is done twice."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.support import real_training
from tests.support.fleet import Fleet
from tests.support.real_training import JOB, submit

from training_schemas.events import JobCheckpoint, JobClaimed, JobCompleted, JobEvent, JobProgress
from training_worker.testing.local_broker import PrivateBroker

pytestmark = [pytest.mark.broker, pytest.mark.trainer]

STEPS = 60
EVERY = 10


async def train(fleet: Fleet) -> None:
    """Submit the job, and wait until it has a checkpoint and some steps more."""
    await submit(fleet, max_train_steps=STEPS, config_overrides={"checkpoint_every": EVERY})
    await fleet.until(JOB, JobCheckpoint)
    await fleet.until(JOB, JobProgress, count=EVERY + 4)


def steps(events: list[JobEvent]) -> list[int]:
    """The steps that were published, in their order."""
    return [event.step for event in events if isinstance(event, JobProgress)]


async def test_a_killed_daemon_re_attaches_to_its_real_trainer(fleet: Fleet, materials: Path) -> None:
    """Every step is trained once and published once; there is one attempt."""
    first = await real_training.start(fleet, materials, "w1")
    await train(fleet)

    first.kill()
    second = await real_training.start(fleet, materials, "w1")
    events = await fleet.events(JOB)

    assert isinstance(events[-1], JobCompleted), events[-1]
    assert steps(events) == list(range(1, STEPS + 1))
    assert len([event for event in events if isinstance(event, JobClaimed)]) == 1
    assert second.logged("trainer_found")[0]["pid"] == first.trainers[0]


async def test_a_second_host_resumes_from_the_checkpoint_of_a_dead_one(fleet: Fleet, materials: Path) -> None:
    """No step before the last checkpoint is trained twice, and the loss of the whole job is published."""
    first = await real_training.start(fleet, materials, "w1", lease=2)
    await train(fleet)

    first.kill()
    os.killpg(first.trainers[0], signal.SIGKILL)
    await real_training.start(fleet, materials, "w2", lease=2)
    events = await fleet.events(JOB)

    assert isinstance(events[-1], JobCompleted), events[-1]
    claimed = [event for event in events if isinstance(event, JobClaimed)]
    assert [event.worker for event in claimed] == ["w1", "w2"]
    assert claimed[1].resume_step % EVERY == 0
    assert claimed[1].resume_step >= EVERY
    published = steps(events)
    assert published[-1] == STEPS
    assert sorted(set(published)) == list(range(1, STEPS + 1))
    assert [step for step in published if published.count(step) > 1 and step <= claimed[1].resume_step] == []
    assert [one.outcome for one in events[-1].attempts] == ["lost", "completed"]


async def test_real_training_continues_while_the_broker_is_restarted(
    private_broker: PrivateBroker, tmp_path: Path, prefix: str, materials: Path
) -> None:
    """The owner re-attaches to its job; every step is trained once."""
    fleet = Fleet(tmp_path / "fleet", private_broker.url, prefix)
    try:
        daemon = await real_training.start(fleet, materials, "w1", lease=60)
        await train(fleet)

        await asyncio.to_thread(private_broker.restart)
        events = await fleet.events(JOB)
    finally:
        await fleet.stop()

    assert isinstance(events[-1], JobCompleted), events[-1]
    assert sorted(set(steps(events))) == list(range(1, STEPS + 1))
    assert len(daemon.logged("trainer_started")) == 1
