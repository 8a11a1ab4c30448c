"""Whether a worker consumes jobs: every order of pause, resume and drain."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from training_worker.queue.admission import Admission

# Waiting in tests is bounded, and generous: the machine may be slow.
TIMEOUT = 30.0


async def turns(count: int = 5) -> None:
    """Let every task go as far as it can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_new_admission_is_open() -> None:
    """A worker consumes jobs from its start."""
    admission = Admission()

    assert not admission.closed
    assert await asyncio.wait_for(admission.wait_open(), TIMEOUT)


async def test_a_paused_admission_holds_whoever_waits_until_it_is_resumed() -> None:
    """All slots continue at once."""
    admission = Admission()
    admission.pause()
    waiting = [asyncio.create_task(admission.wait_open()) for _ in range(3)]
    await turns()

    assert admission.closed
    assert not any(task.done() for task in waiting)
    admission.resume()
    assert await asyncio.wait_for(asyncio.gather(*waiting), TIMEOUT) == [True, True, True]


async def test_draining_ends_the_wait_of_a_paused_worker() -> None:
    """It learns that nothing will ever be consumed again."""
    admission = Admission()
    admission.pause()
    waiting = asyncio.create_task(admission.wait_open())
    await turns()

    admission.drain()

    assert await asyncio.wait_for(waiting, TIMEOUT) is False


async def test_a_drained_admission_never_opens_again() -> None:
    """Neither pause nor resume undo it."""
    admission = Admission()
    admission.drain()
    admission.pause()
    admission.resume()

    assert admission.closed
    assert admission.drained
    assert await asyncio.wait_for(admission.wait_open(), TIMEOUT) is False


@settings(deadline=None)
@given(st.lists(st.sampled_from(["pause", "resume", "drain"])))
def test_in_any_order_of_commands_the_last_one_counts_unless_drained(commands: list[str]) -> None:
    """Nobody waits at an admission that is open, and a closed one is open again only by a resume."""

    async def passes() -> tuple[bool, bool | None]:
        admission = Admission()
        for command in commands:
            getattr(admission, command)()
        waiting = asyncio.create_task(admission.wait_open())
        await turns()
        answer = waiting.result() if waiting.done() else None
        waiting.cancel()
        return admission.closed, answer

    if "drain" in commands:
        assert asyncio.run(passes()) == (True, False)
    elif commands and commands[-1] == "pause":
        assert asyncio.run(passes()) == (True, None)
    else:
        assert asyncio.run(passes()) == (False, True)


async def test_what_is_awaited_comes_through_an_open_admission() -> None:
    """The result is that of the awaited, even if it is nothing."""
    admission = Admission()
    jobs: asyncio.Queue[str] = asyncio.Queue()
    consuming = asyncio.create_task(admission.unless_closed(jobs.get()))
    await turns()

    jobs.put_nowait("job")

    assert await asyncio.wait_for(consuming, TIMEOUT) == "job"


async def test_an_admission_that_closes_ends_the_wait_for_a_job() -> None:
    """The waiting is cancelled, so that no job is lost to somebody who no longer wants it."""
    admission = Admission()
    jobs: asyncio.Queue[str] = asyncio.Queue()
    consuming = asyncio.create_task(admission.unless_closed(jobs.get()))
    await turns()

    admission.pause()

    assert await asyncio.wait_for(consuming, TIMEOUT) is None
    jobs.put_nowait("job")
    await turns()
    assert jobs.qsize() == 1


async def test_an_admission_that_is_closed_already_lets_nothing_be_waited_for() -> None:
    """A wait that would last for ever ends at once."""
    admission = Admission()
    admission.drain()

    assert await asyncio.wait_for(admission.unless_closed(asyncio.Event().wait()), TIMEOUT) is None


async def test_an_interrupted_wait_has_cleaned_up_before_it_is_answered() -> None:
    """What the awaited used may be used by others right afterwards."""
    admission = Admission()
    done = []

    async def slow_to_clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await turns()
            done.append("clean")

    consuming = asyncio.create_task(admission.unless_closed(slow_to_clean_up()))
    await turns()
    admission.drain()
    await asyncio.wait_for(consuming, TIMEOUT)

    assert done == ["clean"]


async def test_an_error_of_the_awaited_comes_through() -> None:
    """The admission hides nothing."""
    broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    broken.set_exception(OSError("connection lost"))

    [answer] = await asyncio.gather(Admission().unless_closed(broken), return_exceptions=True)

    assert isinstance(answer, OSError)


async def test_cancelling_the_wait_cancels_the_awaited() -> None:
    """Nothing is left running behind a slot that is gone."""
    work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    consuming = asyncio.create_task(Admission().unless_closed(work))
    await turns()

    consuming.cancel()
    await asyncio.wait({consuming})

    assert consuming.cancelled()
    assert work.cancelled()
