"""What a cluster of private nodes does when it loses one, which the tests of faults rely on."""

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue
from tests.support.cluster import Cluster

QUEUE = "jobs"
TIMEOUT = 30.0


async def declare(channel: AbstractChannel) -> AbstractQueue:
    return await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"}, timeout=TIMEOUT)


async def publish(channel: AbstractChannel, body: bytes) -> None:
    await channel.default_exchange.publish(aio_pika.Message(body, delivery_mode=2), QUEUE, timeout=TIMEOUT)


async def test_a_quorum_queue_outlives_the_node_that_leads_it(cluster: Cluster) -> None:
    """A client of another node continues, with all that was confirmed; the node comes back as a member."""
    async with await aio_pika.connect(cluster.nodes[0].url) as first, first.channel() as channel:
        await declare(channel)
    old = cluster.leader(QUEUE)
    assert cluster.members(QUEUE) == {0, 1, 2}

    async with await aio_pika.connect(cluster.nodes[old - 1].url) as other, other.channel() as channel:
        await publish(channel, b"confirmed")
        cluster.kill(old)
        await publish(channel, b"after")
        queue = await declare(channel)
        bodies = [(await queue.get(no_ack=True, timeout=TIMEOUT)).body for _ in range(2)]

    assert bodies == [b"confirmed", b"after"]
    assert cluster.leader(QUEUE) != old
    cluster.start(old)
    assert cluster.members(QUEUE) == {0, 1, 2}
