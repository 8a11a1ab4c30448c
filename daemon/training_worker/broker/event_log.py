"""Reading a stream of messages: first those since a time, then new ones."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from aio_pika.abc import AbstractIncomingMessage

from training_worker.broker.session import Session, broker_errors

PREFETCH = 500


async def read_log(session: Session, stream: str, since: float) -> AsyncIterator[bytes]:
    """Yield the bodies of a stream's messages, for ever. Raises `BrokerLostError`.

    A stream finds a time by the chunk: the first messages may be older than ``since`` (unix seconds).
    """
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    channel = await session.channel(prefetch=PREFETCH)
    await session.watch(channel)
    with broker_errors():
        queue = await channel.get_queue(stream, ensure=False)
        start = datetime.fromtimestamp(since, UTC)
        await queue.consume(arrived.put, arguments={"x-stream-offset": start})
    while True:
        message = await session.wait_for(arrived.get())
        yield message.body
        with broker_errors():
            await message.ack()
