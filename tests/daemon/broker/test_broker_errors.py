"""What a call to the broker raises when the AMQP libraries give it up."""

import asyncio

import pytest

from training_worker.broker.session import broker_errors
from training_worker.errors import BrokerLostError


async def call(answer: "asyncio.Future[None]") -> None:
    """A call to the broker."""
    with broker_errors():
        await answer


async def test_a_call_that_the_library_cancels_counts_as_a_lost_connection() -> None:
    """A task that ended of a stray cancellation would be missed by nobody, least of all by its group."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answer.cancel()

    with pytest.raises(BrokerLostError):
        await call(answer)


async def test_a_task_that_is_cancelled_ends() -> None:
    """Its own cancellation passes."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(call(answer))
    await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert task.cancelled()


async def test_a_task_that_is_cancelled_ends_whatever_the_library_makes_of_it() -> None:
    """A cancelled connection may raise an error of its own; who mistakes that for a loss connects again for ever."""

    async def connect() -> None:
        with broker_errors():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ConnectionError("closed") from None

    task = asyncio.create_task(connect())
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()


def test_a_wait_that_ends_without_a_reason_counts_as_lost() -> None:
    """The library raises no more than that for who waits on a channel that is closed meanwhile."""
    with pytest.raises(BrokerLostError, match="channel closed"), broker_errors():
        raise Exception  # noqa: TRY002 - just so


def test_an_error_of_ours_is_not_mistaken_for_the_brokers() -> None:
    """A fault in the code must not look like a network that comes and goes."""
    with pytest.raises(ZeroDivisionError), broker_errors():
        _ = 1 / 0
