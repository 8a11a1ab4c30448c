"""One job's whole life, with a real daemon, a real broker and a child process that keeps the trainer's contract."""

import asyncio
import json
import signal
from pathlib import Path
from urllib.request import urlopen

import aio_pika
import msgspec
import pytest
from tests.support.fleet import CARD_24, Fleet
from tests.support.scrape import free_port

from training_schemas.events import (
    JobCancelled,
    JobClaimed,
    JobCompleted,
    JobFailed,
    JobPhase,
    JobProgress,
    JobQueued,
    JobReleased,
    WorkerOffline,
    WorkerOnline,
)
from training_schemas.ledger import Cancelled, CancelRequested, CheckpointSaved, Claimed, Completed, Released, Submitted

pytestmark = pytest.mark.broker


async def test_a_job_is_trained_and_its_events_tell_the_whole_story(fleet: Fleet) -> None:
    """From submission to completion each turning point is an event, without holes, and said to be simulated."""
    await fleet.start()
    await fleet.submit("portrait")

    events = await fleet.events("portrait")

    assert [type(event) for event in events] == [
        JobQueued,
        JobClaimed,
        JobPhase,
        JobProgress,
        JobProgress,
        JobCompleted,
    ]
    assert [(event.attempt, event.sequence) for event in events] == [(0, 1), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]
    assert {event.simulated for event in events} == {True}
    assert {event.worker for event in events} == {"w1"}


async def test_a_completed_job_reports_what_it_used_and_where_its_result_is(fleet: Fleet) -> None:
    """The output folder appears whole, with a manifest, and the cost follows from the seconds and the card's price."""
    await fleet.start(prices={"RTX 4090": 3.6})
    await fleet.submit("portrait")

    completed = (await fleet.events("portrait"))[-1]

    assert isinstance(completed, JobCompleted)
    output = Path(completed.output_path)
    assert output == fleet.folder / "models" / "portrait"
    assert (output / completed.artifacts[0].path).read_text() == "portrait"
    assert json.loads((output / "manifest.json").read_bytes())["job"]["jobId"] == "portrait"
    assert [path.name for path in output.parent.iterdir()] == ["portrait"]
    assert completed.usage.gpu_seconds > 0
    assert completed.usage.cost_usd == pytest.approx(completed.usage.gpu_seconds * 3.6 / 3600)


async def test_a_finished_job_leaves_nothing_behind_but_its_ledger(fleet: Fleet) -> None:
    """Lock, lease and run folder are gone, the queues are empty, and the ledger has the turning points."""
    daemon = await fleet.start()
    await fleet.submit("portrait")
    await daemon.until_logged("job_ended")

    assert await fleet.depth(fleet.names.lease("portrait")) is None
    assert await fleet.depth(fleet.names.owner("portrait")) is None
    assert await fleet.depth(f"{fleet.names.prefix}.tier.flux.24gb") == 0
    assert [type(entry) for entry in await fleet.ledger()] == [Submitted, Claimed, Completed]
    assert list((fleet.folder / "state-w1" / "runs").iterdir()) == []


async def test_while_a_job_runs_its_copy_is_held_by_the_lease(fleet: Fleet) -> None:
    """The tier queue gave the job up; the lease queue holds a copy that would come back if the daemon were gone."""
    await fleet.start(mode="slow")
    await fleet.submit("portrait", max_train_steps=600)
    await fleet.until("portrait", JobProgress)

    async with fleet.channel() as channel:
        lease = await channel.declare_queue(fleet.names.lease("portrait"), passive=True)

    assert lease.declaration_result.message_count == 0  # ready ones; the copy is delivered and held
    assert lease.declaration_result.consumer_count == 1
    await fleet.api.cancel("portrait")
    assert isinstance((await fleet.events("portrait"))[-1], JobCancelled)


async def test_sigterm_gives_the_job_back_and_the_next_worker_goes_on_from_its_checkpoint(fleet: Fleet) -> None:
    """A stopped daemon ends within its grace; another one takes the job up after the last step that was taken."""
    first = await fleet.start("w1", mode="slow")
    await fleet.submit("portrait", max_train_steps=12)
    await fleet.until("portrait", JobProgress, count=3)

    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    await fleet.start("w2", mode="slow")
    events = await fleet.events("portrait")

    released = next(event for event in events if isinstance(event, JobReleased))
    again = [event for event in events if isinstance(event, JobClaimed)][1]
    assert (released.worker, released.why, released.step) == ("w1", "SIGTERM", again.resume_step)
    assert (again.worker, again.attempt) == ("w2", 2)
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, 13))
    assert isinstance(events[-1], JobCompleted)
    kinds = [type(entry) for entry in await fleet.ledger()]
    assert kinds == [Submitted, Claimed, CheckpointSaved, Released, Claimed, Completed]


async def test_sigint_finishes_the_job_first(fleet: Fleet) -> None:
    """A drained daemon completes what it trains, takes nothing new, says goodbye and ends with status 0."""
    daemon = await fleet.start(mode="slow")
    await fleet.submit("first", max_train_steps=8)
    await fleet.until("first", JobProgress)

    daemon.signal(signal.SIGINT)
    await fleet.submit("second")

    assert await daemon.ended() == 0
    assert isinstance((await fleet.events("first"))[-1], JobCompleted)
    assert [event.about for event in await fleet.all_events(1, WorkerOffline)] == ["w1"]
    started = [event.job_id for event in await fleet.all_events(1, JobClaimed) if isinstance(event, JobClaimed)]
    assert started == ["first"]


async def test_a_running_job_can_be_cancelled(fleet: Fleet) -> None:
    """The trainer saves a checkpoint and stops; the job ends as cancelled, and its worker is free again."""
    await fleet.start(mode="slow")
    await fleet.submit("portrait", max_train_steps=600)
    await fleet.until("portrait", JobProgress)

    await fleet.api.cancel("portrait")
    cancelled = (await fleet.events("portrait"))[-1]

    assert isinstance(cancelled, JobCancelled)
    assert cancelled.step >= 1
    assert cancelled.usage.gpu_seconds > 0
    await fleet.submit("next", max_train_steps=1)
    assert isinstance((await fleet.events("next"))[-1], JobCompleted)


async def test_a_waiting_job_can_be_cancelled(fleet: Fleet) -> None:
    """A cancellation is kept in the ledger, and honoured by whoever takes the job: no trainer starts."""
    daemon = await fleet.start(gpus=[CARD_24], mode="slow")
    await fleet.submit("running", max_train_steps=10)
    await fleet.until("running", JobClaimed)
    await fleet.submit("waiting")
    await fleet.until("waiting", JobQueued)

    await fleet.api.cancel("waiting")
    events = await fleet.events("waiting")

    assert [type(event) for event in events] == [JobQueued, JobCancelled]
    assert len(daemon.logged("trainer_started")) == 1
    entries = [entry for entry in await fleet.ledger() if getattr(entry, "job_id", None) == "waiting"]
    assert [type(entry) for entry in entries] == [Submitted, CancelRequested, Claimed, Cancelled]


async def test_a_job_submitted_twice_is_trained_once(fleet: Fleet) -> None:
    """Two copies that are taken by two cards at once end in one claim, one trainer and one terminal event."""
    daemons = [await fleet.start("w1", mode="slow"), await fleet.start("w2", mode="slow")]
    job = fleet.job("portrait", max_train_steps=10)
    await asyncio.gather(fleet.api.submit_job(job), fleet.api.submit_job(job))

    await fleet.events("portrait")
    # Both copies are settled once whoever lost has nothing more to do.
    await asyncio.gather(*(daemon.until_logged("not_ours") for daemon in daemons if not daemon.logged("claimed")))

    assert sum(len(daemon.logged("trainer_started")) for daemon in daemons) == 1
    assert [type(e) for e in await fleet.ledger() if not isinstance(e, Submitted)] == [Claimed, Completed]


async def test_a_copy_of_a_finished_job_is_settled_without_training(fleet: Fleet) -> None:
    """The ledger remembers a job that ended: a copy that turns up later starts nothing."""
    daemon = await fleet.start()
    job = await fleet.submit("portrait")
    await daemon.until_logged("job_ended")

    await fleet.publish(msgspec.json.encode(job), key="flux.24gb")
    await daemon.until_logged("not_ours")

    assert [entry["why"] for entry in daemon.logged("not_ours")] == ["FINISHED_BEFORE"]
    assert len(daemon.logged("trainer_started")) == 1


async def test_a_restarted_daemon_asks_the_ledger_about_jobs_older_than_itself(fleet: Fleet) -> None:
    """A job that finished before this daemon's tail of the ledger began is found by a scan."""
    first = await fleet.start("w1")
    await fleet.submit("portrait")
    await first.until_logged("job_ended")
    async with fleet.channel() as channel:
        old = fleet.job("portrait")
        tier = await channel.get_exchange(fleet.names.jobs, ensure=False)
        message = aio_pika.Message(msgspec.json.encode(old), headers={"x-training-submitted": 1.0})
        await tier.publish(message, "flux.24gb")

    assert [entry["why"] for entry in await first.until_logged("not_ours")] == ["FINISHED_BEFORE"]


async def test_every_slot_of_a_host_trains_at_the_same_time(fleet: Fleet) -> None:
    """Two cards on one host are two slots: two jobs run side by side, each on its own card."""
    await fleet.start(gpus=[CARD_24, CARD_24], mode="slow")
    for name in ("one", "two"):
        await fleet.submit(name, max_train_steps=30)

    claimed = [await fleet.until(name, JobClaimed) for name in ("one", "two")]

    assert {event.gpu.uuid for event in claimed if isinstance(event, JobClaimed)} == {"SIMULATED-0", "SIMULATED-1"}


async def test_a_worker_says_what_it_is_when_it_comes(fleet: Fleet) -> None:
    """Its first event names its version, cards, tiers and families."""
    await fleet.start(gpus=["NVIDIA A10G:23028MiB"])

    (online,) = await fleet.all_events(1, WorkerOnline)

    assert isinstance(online, WorkerOnline)
    assert [(gpu.name, gpu.memory_mib, gpu.tier) for gpu in online.gpus] == [("NVIDIA A10G", 23028, "24gb")]
    assert online.families == ["flux", "sdxl"]


async def test_a_trainer_that_ignores_sigterm_is_killed_and_the_job_goes_back(fleet: Fleet) -> None:
    """The daemon waits for its grace, kills the trainer's group, releases the job and ends."""
    daemon = await fleet.start(mode="deaf", stop_grace=1)
    await fleet.submit("portrait")
    await fleet.until("portrait", JobProgress)

    daemon.signal(signal.SIGTERM)

    assert await daemon.ended() == 0
    assert daemon.logged("trainer_ended")[0]["exit"] == "killed by SIGKILL"
    assert isinstance(await fleet.until("portrait", JobReleased), JobReleased)
    assert await fleet.depth(f"{fleet.names.prefix}.tier.flux.24gb") == 1


async def test_a_grandchild_that_keeps_the_output_open_does_not_hold_the_job_up(fleet: Fleet) -> None:
    """What a trainer leaves behind in its group is ended with it."""
    await fleet.start(mode="grandchild")
    await fleet.submit("portrait")

    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)


async def test_a_crash_without_a_word_fails_the_job_with_the_last_lines_of_output(fleet: Fleet) -> None:
    """The event names how the trainer ended and what it printed last; the message waits in the dead queue."""
    await fleet.start(mode="crash")
    await fleet.submit("portrait", max_attempts=1)

    failed = (await fleet.events("portrait"))[-1]
    dead_letter = await fleet.dead()

    assert isinstance(failed, JobFailed)
    assert failed.reason == "trainerCrashed"
    assert failed.message == "trainer ended without reporting a result in phase training: exit status 9"
    assert failed.output_tail == ["the last word"]
    assert dead_letter.message_id == "portrait"
    assert dead_letter.headers["x-training-reason"] == "trainerCrashed"


async def test_a_worker_that_is_asked_for_metrics_counts_what_it_did(fleet: Fleet) -> None:
    """Attempts, GPU-seconds and dollars are there for Prometheus, by type and outcome."""
    port = free_port()
    daemon = await fleet.start(metrics_port=port)
    await fleet.submit("portrait")
    await daemon.until_logged("job_ended")

    scrape = await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode())

    labels = '{outcome="completed",training_type="FLUX_LORA"}'
    assert f"training_worker_attempts_total{labels} 1.0" in scrape
    assert 'training_worker_jobs_running{training_type="FLUX_LORA"} 0.0' in scrape
    used = next(line for line in scrape.splitlines() if line.startswith(f"training_worker_gpu_seconds_total{labels}"))
    assert float(used.split()[1]) > 0
