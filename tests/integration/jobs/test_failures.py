"""What follows from a failure: tried again here or elsewhere, or given up, and every second accounted for."""

import os
import signal

import pytest
from tests.support.fleet import GPU_24, Fleet

from training_schemas.events import (
    JobCheckpoint,
    JobClaimed,
    JobCompleted,
    JobFailed,
    JobProgress,
    JobReleased,
    JobRetrying,
    JobSample,
    JobWarning,
)

pytestmark = pytest.mark.broker


async def test_a_job_that_failed_on_a_worker_goes_to_another_one(fleet: Fleet) -> None:
    """Where it crashed it is left alone for a while, so that somebody else can consume it."""
    first = await fleet.start("w1", mode="killer")
    await fleet.submit("portrait", max_train_steps=6)
    retrying = await fleet.until("portrait", JobRetrying)
    await fleet.start("w2", mode="steady")
    events = await fleet.events("portrait")

    assert isinstance(retrying, JobRetrying)
    assert (retrying.reason, retrying.here, retrying.counted, retrying.delay_seconds) == (
        "trainerCrashed",
        False,
        True,
        1.0,
    )
    assert [event.worker for event in events if isinstance(event, JobClaimed)] == ["w1", "w2"]
    assert isinstance(events[-1], JobCompleted)
    assert len(first.logged("claimed")) == 1


async def test_the_only_worker_consumes_the_job_again_in_the_end(fleet: Fleet) -> None:
    """It passes the job on three times; nobody else comes."""
    daemon = await fleet.start("w1", mode="killer")
    await fleet.submit("portrait", max_attempts=2)

    failed = (await fleet.events("portrait"))[-1]

    assert isinstance(failed, JobFailed)
    assert [entry["times"] for entry in daemon.logged("passed_on")] == [1, 2, 3]
    assert [(one.attempt, one.outcome, one.reason) for one in failed.attempts] == [
        (1, "failed", "trainerCrashed"),
        (2, "failed", "trainerCrashed"),
    ]


async def test_a_job_out_of_memory_is_tried_again_on_the_same_gpu_with_less(fleet: Fleet) -> None:
    """A smaller micro-batch with more accumulation; it does not count as one of the job's attempts."""
    await fleet.start("w1", mode="hog")
    await fleet.submit("portrait", max_train_steps=4, batch_size=4, max_attempts=1)

    events = await fleet.events("portrait")

    claimed = [event for event in events if isinstance(event, JobClaimed)]
    assert [event.changes.get("batchSize", 4) for event in claimed] == [4, 2, 1]
    assert [event.changes.get("gradientAccumulationSteps", 0) * event.changes.get("batchSize", 0) for event in claimed][
        1:
    ] == [32, 32]
    retrying = [event for event in events if isinstance(event, JobRetrying)]
    assert [(event.here, event.counted) for event in retrying] == [(True, False)] * 2
    assert isinstance(events[-1], JobCompleted)


async def test_a_job_stops_at_its_limit_of_cost_with_a_checkpoint(fleet: Fleet) -> None:
    """It fails for a reason of its own; what it cost is about its limit, and its steps are kept."""
    await fleet.start("w1", mode="steady", prices={"RTX 4090": 3600.0})
    await fleet.submit("portrait", max_train_steps=600, max_cost_usd=2.0)

    events = await fleet.events("portrait")

    failed = events[-1]
    assert isinstance(failed, JobFailed)
    assert failed.reason == "budgetExhausted"
    assert failed.usage.cost_usd is not None
    assert 2.0 <= failed.usage.cost_usd < 4.0
    steps = [event.step for event in events if isinstance(event, JobProgress)]
    assert [event.step for event in events if isinstance(event, JobCheckpoint)][-1] == steps[-1]
    assert (await fleet.dead()).headers["x-training-reason"] == "budgetExhausted"


async def test_the_limit_of_cost_is_that_of_all_attempts(fleet: Fleet) -> None:
    """What earlier attempts cost is subtracted."""
    first = await fleet.start("w1", mode="steady", prices={"RTX 4090": 3600.0})
    await fleet.submit("portrait", max_train_steps=600, max_cost_usd=3.0)
    await fleet.until("portrait", JobProgress, count=10)
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    await fleet.start("w2", mode="steady", prices={"RTX 4090": 3600.0})

    events = await fleet.events("portrait")

    released = next(event for event in events if isinstance(event, JobReleased))
    failed = events[-1]
    assert isinstance(failed, JobFailed)
    costs = [one.usage.cost_usd or 0.0 for one in failed.attempts]
    assert costs == [released.usage.cost_usd, failed.usage.cost_usd]
    assert 3.0 <= sum(costs) < 5.0


async def test_a_limit_that_cannot_be_kept_is_reported(fleet: Fleet) -> None:
    """A GPU without a price has no cost: the job runs, and its user knows."""
    await fleet.start("w1", mode="steady", gpus=["Unheard Of 24:24564MiB"])
    await fleet.submit("portrait", max_train_steps=2, max_cost_usd=1.0)

    events = await fleet.events("portrait")

    warnings = [event.message for event in events if isinstance(event, JobWarning)]
    assert warnings == ["maxCostUSD cannot be kept: no price is known for Unheard Of 24"]
    assert isinstance(events[-1], JobCompleted)


async def test_a_loss_that_is_no_number_ends_the_job(fleet: Fleet) -> None:
    """Nobody pays for steps that lead nowhere, and no second host tries the same."""
    await fleet.start("w1", mode="diverge")
    await fleet.submit("portrait")

    failed = (await fleet.events("portrait"))[-1]

    assert isinstance(failed, JobFailed)
    assert failed.reason == "lossNotFinite"
    assert failed.message == "cannot go on: the loss of step 2 is not finite"


async def test_a_trainer_that_reports_nothing_new_is_stopped(fleet: Fleet) -> None:
    """The bound of the phase counts from the last record, not from the start."""
    await fleet.start("w1", mode="stuck", stall_training=1)
    await fleet.submit("portrait", max_attempts=1)

    failed = (await fleet.events("portrait"))[-1]

    assert isinstance(failed, JobFailed)
    assert failed.reason == "stalled"
    assert failed.message == "stopped: nothing new for 1 s in phase training"


async def test_what_was_wasted_is_what_came_after_the_last_checkpoint(fleet: Fleet) -> None:
    """Of a killed trainer, the seconds before its checkpoint were useful, since the next attempt resumes from there."""
    daemon = await fleet.start("w1", mode="steady")
    await fleet.submit("portrait", max_train_steps=30)
    await fleet.until("portrait", JobCheckpoint, count=2)
    os.killpg(daemon.trainers[0], signal.SIGKILL)

    completed = (await fleet.events("portrait"))[-1]

    assert isinstance(completed, JobCompleted)
    first, second = (one.usage for one in completed.attempts)
    assert 0 < first.wasted_gpu_seconds < first.gpu_seconds
    assert second.wasted_gpu_seconds == 0


async def test_a_running_job_saves_a_checkpoint_and_draws_samples_on_request(fleet: Fleet) -> None:
    """The commands reach the trainer by its run folder; its answers are the usual events."""
    await fleet.start("w1", mode="obliging", gpus=[GPU_24])
    await fleet.submit("portrait", max_train_steps=200)
    await fleet.until("portrait", JobProgress)

    assert await fleet.api.sample_now("portrait")
    assert isinstance(await fleet.until("portrait", JobSample), JobSample)
    assert await fleet.api.checkpoint_now("portrait")
    assert isinstance(await fleet.until("portrait", JobCheckpoint), JobCheckpoint)
    await fleet.api.cancel("portrait")
    await fleet.events("portrait")
