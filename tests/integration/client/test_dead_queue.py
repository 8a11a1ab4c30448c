"""What gave up can be looked at, put back and dropped, and nothing of it is lost on the way."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import msgspec
import pytest
from tests.support.command_line import run
from tests.support.fleet import CARD_8, TIMEOUT, Fleet

from training_schemas.events import JobCompleted, JobFailed, JobQueued
from training_schemas.ledger import Claimed, Completed, Failed, Requeued, Submitted
from training_schemas.progress import Fault
from training_schemas.usage import AttemptSummary, Usage
from training_worker.broker.connection import Connection
from training_worker.errors import BrokerError, DeadLetterError
from training_worker.queue.dead_letter import DeadLetter
from training_worker.queue.dead_letter_queue import dead_letter_job, opened

pytestmark = pytest.mark.broker

ATTEMPT = AttemptSummary(
    attempt=1,
    worker="w1",
    outcome="failed",
    usage=Usage(gpu_seconds=61.0, cost_usd=0.5),
    reason="trainerCrashed",
    message="exit status 9",
)


@contextlib.asynccontextmanager
async def linked(fleet: Fleet) -> AsyncIterator[Connection]:
    """A link of the tests' own."""
    connection = Connection(fleet.url, fleet.names, client="tests")
    running = asyncio.create_task(connection.run(), name="link")
    try:
        yield connection
    finally:
        running.cancel()
        await asyncio.wait({running})


async def put(fleet: Fleet, *job_ids: str, body: bytes | None = None, **parts: Any) -> None:
    """Bury a letter of each job."""
    async with asyncio.timeout(TIMEOUT), linked(fleet) as connection:
        for job_id in job_ids:
            text = {"reason": "trainerCrashed", "message": f"{job_id} crashed"} | parts
            await dead_letter_job(connection, body or msgspec.json.encode(fleet.job(job_id)), job_id=job_id, **text)


def ids(dead_letters: list[DeadLetter]) -> list[str]:
    """Whose letters these are."""
    return [dead_letter.job_id for dead_letter in dead_letters]


async def failed(fleet: Fleet) -> None:
    """Have a job fail, and its daemon leave."""
    daemon = await fleet.start("w1", mode="crash")
    await fleet.submit("portrait", max_attempts=1)
    await daemon.until_logged("job_ended")
    daemon.signal(signal.SIGTERM)
    await daemon.ended()


async def test_a_failed_job_that_is_put_back_is_trained_again(fleet: Fleet) -> None:
    """The ledger hears of it first; the job is queued anew, by an event of its own, and its attempts count on."""
    await failed(fleet)
    await fleet.start("w2")

    done = await run(fleet, "dead", "requeue", "portrait")

    assert (done.returncode, done.stdout) == (0, "portrait: put back after trainerCrashed\n")
    (completed,) = await fleet.all_events(1, JobCompleted)
    assert isinstance(completed, JobCompleted)
    assert (completed.worker, completed.attempt) == ("w2", 2)
    kinds = [type(entry) for entry in await fleet.ledger()]
    assert kinds == [Submitted, Claimed, Failed, Requeued, Submitted, Claimed, Completed]
    first, again = await fleet.all_event_ids(JobQueued)
    assert (first, again != first) == ("portrait/0/1", True)
    assert await fleet.api.dead_letters() == []


async def test_a_job_that_fails_again_is_back_in_the_dead_queue(fleet: Fleet) -> None:
    """As often as it is put back."""
    await failed(fleet)
    await fleet.start("w2", mode="crash")

    await fleet.api.requeue("portrait")

    again = (await fleet.all_events(2, JobFailed))[1]
    assert isinstance(again, JobFailed)
    assert (again.worker, again.attempt) == ("w2", 2)
    assert ids(await fleet.api.dead_letters()) == ["portrait"]


async def test_letters_are_looked_at_without_being_moved(fleet: Fleet) -> None:
    """However often, they stay, and keep their order."""
    names = [f"job-{number}" for number in range(40)]
    await put(fleet, *names)

    seen = [ids(await fleet.api.dead_letters()) for _ in range(4)]

    assert seen == [names] * 4


async def test_what_is_left_after_some_were_taken_out_keeps_its_order(fleet: Fleet) -> None:
    """Also those that come later come later."""
    names = [f"job-{number}" for number in range(10)]
    await put(fleet, *names)

    assert ids(await fleet.api.drop("job-7", "job-0")) == ["job-7", "job-0"]

    await put(fleet, "later")
    assert ids(await fleet.api.dead_letters()) == [*names[1:7], *names[8:], "later"]


async def test_a_letter_says_all_that_is_known(fleet: Fleet) -> None:
    """Reason, faults, attempts with what they used, the last output, when, and the message as it was."""
    fault = Fault(path="a.png", reason="corrupt")
    await put(fleet, "portrait", history=[ATTEMPT], output_tail=["line 1", "last line"], faults=[fault])

    (dead_letter,) = await fleet.api.dead_letters("portrait")

    assert (dead_letter.reason, dead_letter.message, dead_letter.faults) == (
        "trainerCrashed",
        "portrait crashed",
        [fault],
    )
    assert (dead_letter.history, dead_letter.output) == ([ATTEMPT], "line 1\nlast line")
    assert (dead_letter.job, dead_letter.ended) == (fleet.job("portrait"), True)
    assert dead_letter.dead_lettered_at is not None
    assert dead_letter.dead_lettered_at > 1.7e9


async def test_monstrous_texts_fit_into_the_letter(fleet: Fleet) -> None:
    """Of output and history the end is kept, of the message the beginning; the broker takes it."""
    monsters = [msgspec.structs.replace(ATTEMPT, attempt=n, message="\N{PILE OF POO}" * 50_000) for n in range(1, 100)]
    await put(
        fleet,
        "portrait",
        message="\N{EURO SIGN}" * 300_000,
        history=monsters,
        faults=[Fault(path=f"{n}.png", reason="\N{SNOWMAN}" * 400) for n in range(500)],
        output_tail=["\N{LATIN SMALL LETTER E WITH ACUTE}" * 500_000, "the end"],
    )

    (dead_letter,) = await fleet.api.dead_letters()

    assert dead_letter.history[-1].attempt == 99
    assert dead_letter.faults[0].path == "0.png"
    assert dead_letter.output.endswith("\N{LATIN SMALL LETTER E WITH ACUTE}\nthe end")
    assert set(dead_letter.message) == {"\N{EURO SIGN}"}


async def test_list_and_show_tell_people_and_programs(fleet: Fleet) -> None:
    """A line each, or everything; JSON where it is asked for."""
    await put(fleet, "portrait", history=[ATTEMPT], output_tail=["the \x1b[31mlast word"])

    table = (await run(fleet, "dead", "list")).stdout
    shown = (await run(fleet, "dead", "show", "portrait")).stdout
    (listed,) = json.loads((await run(fleet, "dead", "list", "--json")).stdout)

    assert all(word in table for word in ("portrait", "trainerCrashed", "portrait crashed"))
    assert "attempt 1 on w1: failed  61.0 GPU-s  0.5000 USD: trainerCrashed: exit status 9" in shown
    assert "the \N{REPLACEMENT CHARACTER}[31mlast word" in shown
    assert '"trainingType": "FLUX_LORA"' in shown
    assert (listed["jobId"], listed["body"]["trainingType"]) == ("portrait", "FLUX_LORA")
    assert listed["history"][0]["usage"] == {"gpuSeconds": 61.0, "costUSD": 0.5}


@pytest.mark.parametrize("command", ["show", "requeue", "drop"])
async def test_a_job_that_has_no_letter_is_an_error(fleet: Fleet, command: str) -> None:
    """Said in a line, with status 1."""
    async with fleet.session():
        pass

    done = await run(fleet, "dead", command, "nobody")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "training-worker: the dead-letter queue has no dead letter of nobody\n"


async def test_with_one_that_cannot_be_put_back_none_is(fleet: Fleet) -> None:
    """Nor dropped: whoever mistypes an id finds everything as it was."""
    await put(fleet, "a", "b")

    with pytest.raises(DeadLetterError):
        await fleet.api.requeue("a", "typo")
    with pytest.raises(DeadLetterError):
        await fleet.api.drop("a", "typo")

    assert ids(await fleet.api.dead_letters()) == ["a", "b"]
    assert await fleet.depth(fleet.names.intake) == 0
    assert await fleet.ledger() == []


async def test_the_newest_letter_that_is_a_job_is_put_back(fleet: Fleet) -> None:
    """The others stay; a message that is no job cannot be put back, and it is said why."""
    bad = b'{"jobId": "portrait"}'
    await put(fleet, "portrait", message="first")
    await put(fleet, "portrait", message="second")
    await put(fleet, "portrait", body=bad, reason="rejected", message="third")

    (chosen,) = await fleet.api.requeue("portrait")

    assert chosen.message == "second"
    assert [dead_letter.message for dead_letter in await fleet.api.dead_letters("portrait")] == ["first", "third"]
    await fleet.api.drop("portrait")
    await put(fleet, "portrait", body=bad, reason="rejected")
    with pytest.raises(DeadLetterError, match="trainingType: required field is missing"):
        await fleet.api.requeue("portrait")


async def test_what_cannot_be_published_stays_in_the_dead_queue(fleet: Fleet) -> None:
    """The letter is given up last."""
    await put(fleet, "portrait")
    async with fleet.session() as session, fleet.channel() as channel:
        intake = await channel.get_queue(fleet.names.intake, ensure=False)
        await intake.unbind(fleet.names.jobs, "submit")
        async with opened(session, fleet.names) as queue:
            with pytest.raises(BrokerError):
                await queue.requeue(["portrait"])

    assert ids(await fleet.api.dead_letters()) == ["portrait"]
    assert [type(entry) for entry in await fleet.ledger()] == [Requeued]


async def test_a_job_that_was_completed_since_is_not_put_back(fleet: Fleet) -> None:
    """An old letter of it may still lie there; its result stands."""
    await put(fleet, "portrait")
    daemon = await fleet.start()
    await fleet.submit("portrait")
    await daemon.until_logged("job_ended")

    with pytest.raises(DeadLetterError, match="it has been completed since"):
        await fleet.api.requeue("portrait")

    assert Requeued not in [type(entry) for entry in await fleet.ledger()]


async def test_what_the_broker_gave_up_is_told_by_its_own_words(fleet: Fleet) -> None:
    """It can be put back like the rest, and since it had not ended, the ledger needs no word of that."""
    daemon = await fleet.start("small", gpus=[CARD_8])
    await fleet.submit("portrait")
    await daemon.until_logged("queued")
    tier = f"{fleet.names.prefix}.tier.flux.24gb"
    async with fleet.channel() as channel:
        message = await (await channel.get_queue(tier, ensure=False)).get()
        assert message is not None
        await message.reject(requeue=False)

    async with asyncio.timeout(TIMEOUT):
        while not (dead_letters := await fleet.api.dead_letters()):  # noqa: ASYNC110 - a queue has no such event
            await asyncio.sleep(0.05)

    (dead_letter,) = dead_letters
    assert (dead_letter.job_id, dead_letter.reason, dead_letter.from_queue, dead_letter.ended) == (
        "portrait",
        "rejected",
        tier,
        False,
    )
    assert dead_letter.dead_lettered_at is not None
    await fleet.api.requeue("portrait")
    await fleet.start("large")
    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)
    assert Requeued not in [type(entry) for entry in await fleet.ledger()]


async def test_what_strangers_put_there_is_shown_and_can_be_dropped(fleet: Fleet) -> None:
    """Without any header, and not even JSON."""
    async with fleet.session() as session:
        await session.publish("", fleet.names.dead, aio_pika.Message(b"\xff\xfe"))

    shown = await run(fleet, "dead", "show", "_")
    dropped = await run(fleet, "dead", "drop", "_")

    assert (shown.returncode, dropped.returncode) == (0, 0)
    assert "_: unknown: " in shown.stdout
    assert dropped.stdout.startswith("_: dropped unknown")
    assert await fleet.api.dead_letters() == []
