"""What the proxy does to connections, which the tests of faults rely on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aio_pika
import aiormq
import pytest
from aio_pika.abc import AbstractChannel
from tests.support.proxy import Proxy
from yarl import URL

pytestmark = pytest.mark.broker

TIMEOUT = 20.0
# How long nothing may happen, where that is what is tested.
SILENCE = 0.3

GREETING = b"AMQP\x00\x00\x09\x01"

# Start, tune and open of the connection, open of the channel: each with its answer.
FRAMES_OF_A_CHANNEL = 8
# The method, the header with the properties, and the body; then the broker's confirm.
FRAMES_OF_A_MESSAGE = 3

LOST = (aio_pika.exceptions.AMQPError, OSError, TimeoutError)


@asynccontextmanager
async def channel_of(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel with confirms, on a connection that may be beyond a polite end."""
    connection = await aio_pika.connect(url, timeout=TIMEOUT)
    try:
        yield await connection.channel()
    finally:
        with suppress(*LOST):
            await asyncio.wait_for(connection.close(), SILENCE)


async def send(channel: AbstractChannel, queue: str) -> None:
    await channel.default_exchange.publish(aio_pika.Message(b"job"), queue, timeout=TIMEOUT)


async def depth(url: str, queue: str) -> int | None:
    """How many messages a queue holds, read past the proxy."""
    async with channel_of(url) as channel:
        declared = await channel.declare_queue(queue, durable=True)
        return declared.declaration_result.message_count


async def greeted(url: str, *, limit: float = TIMEOUT) -> bool:
    """Whether the broker answers a client that greets it."""
    reader, writer = await dial(url)
    writer.write(GREETING)
    try:
        return bool(await asyncio.wait_for(reader.read(1), limit))
    except TimeoutError:
        return False
    finally:
        writer.close()


async def dial(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = URL(url)
    return await asyncio.open_connection(address.host, address.port)


async def test_what_is_held_is_delivered_when_the_network_is_back(proxy: Proxy, broker_url: str, prefix: str) -> None:
    """The connection survives, and nothing that was sent meanwhile is lost."""
    await depth(broker_url, prefix)
    async with channel_of(proxy.url) as channel:
        proxy.hold()
        sending = asyncio.create_task(send(channel, prefix))
        await asyncio.wait([sending], timeout=SILENCE)
        assert await depth(broker_url, prefix) == 0

        proxy.resume()
        await sending

        assert await depth(broker_url, prefix) == 1


async def test_what_is_dropped_is_lost_for_good_without_notice(proxy: Proxy, broker_url: str, prefix: str) -> None:
    """A connection of that time stays open and silent; one that is opened afterwards works."""
    await depth(broker_url, prefix)
    async with channel_of(proxy.url) as channel:
        proxy.drop()
        sending = asyncio.create_task(send(channel, prefix))
        assert not await greeted(proxy.url, limit=SILENCE)

        proxy.pass_on()
        assert await greeted(proxy.url)

        await asyncio.wait([sending], timeout=SILENCE)
        assert not sending.done()
        assert await depth(broker_url, prefix) == 0
        sending.cancel()


async def test_the_end_of_a_client_is_dropped_too(proxy: Proxy, broker_url: str, prefix: str) -> None:
    """The broker keeps what belongs to the connection, here an exclusive queue, until it misses the heartbeats."""
    async with Proxy(proxy.url) as client_side, channel_of(client_side.url) as channel:
        await channel.declare_queue(prefix, exclusive=True)
        proxy.drop()
        client_side.cut()
        await asyncio.sleep(SILENCE)

        async with channel_of(broker_url) as other:
            with pytest.raises(aiormq.exceptions.ChannelLockedResource):
                await other.declare_queue(prefix, exclusive=True)


@pytest.mark.parametrize("frames", range(1, FRAMES_OF_A_CHANNEL + 1))
async def test_a_connection_is_cut_at_any_frame(proxy: Proxy, frames: int) -> None:
    """Frames count in both directions, and the greeting before them does not."""
    proxy.cut_after(frames)

    with pytest.raises(LOST):
        async with channel_of(proxy.url) as channel:
            await send(channel, "nowhere")

    assert proxy.frames == frames


async def test_a_cut_happens_once(proxy: Proxy) -> None:
    """The next connection is let through, and its frames are no longer counted."""
    proxy.cut_after(1)
    with pytest.raises(LOST):
        async with channel_of(proxy.url):
            pass

    async with channel_of(proxy.url) as channel:
        await send(channel, "nowhere")

    assert proxy.frames == 1


@pytest.mark.parametrize(("frames", "arrives"), [(2, 0), (FRAMES_OF_A_MESSAGE, 1)])
async def test_frames_before_a_cut_arrive_whole(
    proxy: Proxy, broker_url: str, prefix: str, frames: int, arrives: int
) -> None:
    """A message whose last frame came before the cut is there, though its sender gets no confirm."""
    await depth(broker_url, prefix)
    async with channel_of(proxy.url) as channel:
        proxy.cut_after(frames)
        with pytest.raises(LOST):
            await send(channel, prefix)

    async with asyncio.timeout(TIMEOUT):
        while await depth(broker_url, prefix) != arrives:  # noqa: ASYNC110 - a queue has no such event
            await asyncio.sleep(0.02)


async def test_frames_are_counted_from_the_call_on(proxy: Proxy, broker_url: str, prefix: str) -> None:
    """Counting without ever cutting shows how many places there are to cut at."""
    await depth(broker_url, prefix)
    async with channel_of(proxy.url) as channel:
        proxy.cut_after(10_000)
        await send(channel, prefix)

        assert proxy.frames == FRAMES_OF_A_MESSAGE + 1
