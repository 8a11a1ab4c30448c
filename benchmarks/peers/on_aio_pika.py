"""A consumer written on aio-pika alone: what the broker, the client library and Python take."""

import asyncio

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

from benchmarks.peers.submit import Submit
from benchmarks.peers.task import QUEUE, QUEUE_TYPE, URL, work


async def connect() -> Submit:
    """Open a backend's connection."""
    connection = await aio_pika.connect(URL)
    channel = await connection.channel()
    await declare(channel)

    async def submit(child: bool) -> None:
        message = aio_pika.Message(bytes([child]), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, QUEUE)

    return submit


async def declare(channel: AbstractChannel) -> AbstractQueue:
    """The one queue."""
    return await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": QUEUE_TYPE})


async def consume() -> None:
    """Work for ever, acknowledging each message after its work."""
    async with await aio_pika.connect(URL) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await declare(channel)
        async with queue.iterator() as messages:
            async for message in messages:
                work(bool(message.body[0]))
                await message.ack()


if __name__ == "__main__":
    asyncio.run(consume())
