"""The node whose consumer timeout strikes within a test."""

import asyncio
import time

import aio_pika
import aiormq
import pytest
from aio_pika.abc import AbstractIncomingMessage
from tests.support.consumer_timeout import CONSUMER_TIMEOUT

from training_worker.testing.local_broker import PrivateBroker

TIMEOUT = CONSUMER_TIMEOUT + 10


async def test_a_delivery_that_is_held_for_too_long_closes_its_channel(consumer_timeout_broker: PrivateBroker) -> None:
    """It is closed with 406 soon after the timeout, and the message goes back to its queue."""
    delivered = asyncio.Event()

    async def hold(_: AbstractIncomingMessage) -> None:
        delivered.set()

    async with await aio_pika.connect(consumer_timeout_broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("jobs", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(aio_pika.Message(b"job"), "jobs")
        closed = (await channel.get_underlay_channel()).closing
        await queue.consume(hold)
        await asyncio.wait_for(delivered.wait(), TIMEOUT)
        start = time.monotonic()

        with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="timed out"):
            await asyncio.wait_for(closed, TIMEOUT)

        assert CONSUMER_TIMEOUT - 1 < time.monotonic() - start < CONSUMER_TIMEOUT + 5
        again = await (await connection.channel()).get_queue("jobs")
        assert (await again.get(timeout=TIMEOUT)).redelivered
