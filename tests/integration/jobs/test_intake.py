"""What the intake answers to a job that the ledger knows already."""

import asyncio
import signal
import time

import msgspec
import pytest
from tests.support.command_line import run
from tests.support.fleet import GPU_8, TIMEOUT, Fleet

from training_schemas.events import (
    CONTENT_TYPE,
    JobCompleted,
    JobDuplicate,
    JobQueued,
    JobRefused,
    encode_event,
    routing_key,
    wrap,
)
from training_schemas.jobs import job_digest
from training_schemas.ledger import Claimed, Completed, Submitted
from training_worker.broker.session import persistent

pytestmark = pytest.mark.broker


async def test_a_job_that_was_completed_is_answered_from_the_ledger(fleet: Fleet) -> None:
    """Its sender learns how it ended and where the result lies; nothing is queued or trained."""
    daemon = await fleet.start()
    job = await fleet.submit("portrait")
    await daemon.until_logged("job_ended")

    await fleet.api.submit_job(job)

    (event,) = await fleet.all_events(1, JobDuplicate)
    assert isinstance(event, JobDuplicate)
    assert (event.job_id, event.outcome, event.output_path) == ("portrait", "completed", job.output_path)
    assert (event.attempt, event.sequence) == (0, 1)
    assert [type(entry) for entry in await fleet.ledger()] == [Submitted, Claimed, Completed]
    assert len(daemon.logged("claimed")) == 1


async def test_a_daemon_knows_of_ends_from_before_its_start(fleet: Fleet) -> None:
    """It reads the ledger of the last day first, and a job that arrives meanwhile waits for that."""
    first = await fleet.start("w1", mode="crash")
    job = await fleet.submit("portrait", max_attempts=1)
    await first.until_logged("job_ended")
    first.signal(signal.SIGTERM)
    await first.ended()

    await fleet.api.submit_job(job)
    await fleet.start("w2")

    (event,) = await fleet.all_events(1, JobDuplicate)
    assert isinstance(event, JobDuplicate)
    assert (event.worker, event.outcome) == ("w2", "failed")


async def test_another_job_under_a_known_id_is_refused_and_the_known_one_trained(fleet: Fleet) -> None:
    """The event names the refused one by its digest, the dead queue keeps it, and the first job goes its way."""
    daemon = await fleet.start("small", gpus=[GPU_8])
    await fleet.submit("portrait", max_train_steps=2)
    await daemon.until_logged("queued")
    other = fleet.job("portrait", max_train_steps=3)

    receipt = await fleet.api.submit_job(other)
    refused = await fleet.api.wait("portrait", digest=receipt.digest, limit=TIMEOUT)

    assert isinstance(refused, JobRefused)
    assert refused.digest == receipt.digest == job_digest(other)
    (dead_letter,) = await fleet.api.dead_letters()
    assert (dead_letter.job_id, dead_letter.reason, dead_letter.job) == ("portrait", "idTaken", other)
    await fleet.start("large")
    completed = (await fleet.events("portrait"))[-1]
    assert isinstance(completed, JobCompleted)
    assert completed.steps == 2


async def test_of_two_jobs_that_come_at_once_under_one_id_one_is_let_in(fleet: Fleet) -> None:
    """However close they follow each other."""
    bodies = [msgspec.json.encode(fleet.job("portrait", max_train_steps=steps)) for steps in range(2, 10)]
    async with fleet.session():
        await asyncio.gather(*(fleet.publish(body) for body in bodies))

    daemon = await fleet.start("small", gpus=[GPU_8])

    await daemon.until_logged("refused", len(bodies) - 1)
    assert await fleet.depth(f"{fleet.names.prefix}.tier.flux.24gb") == 1
    assert len(await fleet.api.dead_letters()) == len(bodies) - 1


async def test_a_copy_of_a_waiting_job_is_queued_too_and_published_as_the_same_event(fleet: Fleet) -> None:
    """Dropping it could lose the job: the first copy may never have reached its queue."""
    daemon = await fleet.start("small", gpus=[GPU_8])
    job = await fleet.submit("portrait")
    await daemon.until_logged("queued")

    await fleet.api.submit_job(job)

    await daemon.until_logged("queued", 2)
    assert await fleet.depth(f"{fleet.names.prefix}.tier.flux.24gb") == 2
    assert await fleet.all_event_ids(JobQueued) == ["portrait/0/1", "portrait/0/1"]
    submitted = [entry.time for entry in await fleet.ledger() if isinstance(entry, Submitted)]
    assert submitted[0] == submitted[1]


async def test_whoever_waits_for_a_job_that_had_ended_before_gets_its_end(fleet: Fleet) -> None:
    """Its events end with that."""
    event = JobDuplicate(
        worker="w1",
        simulated=True,
        job_id="portrait",
        attempt=0,
        sequence=1,
        outcome="completed",
        output_path="/models/portrait",
    )
    async with fleet.session() as session:
        body = encode_event(wrap(event, event_id="1", time=time.time()))
        await session.publish(fleet.names.events, routing_key(event), persistent(body, content_type=CONTENT_TYPE))

    assert await fleet.api.wait("portrait", limit=TIMEOUT) == event
    assert (await run(fleet, "watch", "portrait")).returncode == 0


async def test_submit_with_watch_ends_with_1_when_the_id_is_in_use(fleet: Fleet) -> None:
    """And reports that it was refused."""
    daemon = await fleet.start("small", gpus=[GPU_8])
    await fleet.submit("portrait", max_train_steps=2)
    await daemon.until_logged("queued")
    file = fleet.folder / "other.json"
    file.write_bytes(msgspec.json.encode(fleet.job("portrait", max_train_steps=3)))

    done = await run(fleet, "submit", str(file), "--watch")

    assert done.returncode == 1
    assert "portrait: refused a submission of another job with this id" in done.stdout
