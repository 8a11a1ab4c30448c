"""The lease: a quorum queue that holds a copy of the job.

If its owner is gone for longer than the lease, the copy is dead-lettered to the job's tier queue, and the job comes
back by itself.
"""

import asyncio

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelPreconditionFailed

from training_worker.broker.names import Names
from training_worker.broker.session import Session, broker_errors
from training_worker.broker.topology import DELIVERY_LIMIT, at_least_once

# A queue that expires drops its messages: it must live far longer than they do.
EXPIRY_FACTOR = 10

DELIVERY_TIMEOUT = 30.0


class Lease:
    """The owner's hold on the lease queue: copies that are delivered and not acknowledged do not expire."""

    def __init__(self, session: Session, queue: AbstractQueue) -> None:
        self._session = session
        self._queue = queue
        self._held: list[AbstractIncomingMessage] = []
        self._arrived = asyncio.Condition()

    @classmethod
    async def open(cls, session: Session, queue: AbstractQueue) -> "Lease":
        """Consume the queue. As a rule nothing is held yet. Raises `BrokerLostError`."""
        lease = cls(session, queue)
        await session.watch(queue.channel)
        with broker_errors():
            await queue.consume(lease._receive)
        return lease

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        async with self._arrived:
            self._held.append(message)
            self._arrived.notify_all()

    async def renew(self, message: Message) -> None:
        """Publish a fresh copy, wait until it is held, then drop the older ones. Raises `BrokerLostError`.

        No copy is held for longer than from one renewal to the next, so no consumer timeout ever strikes.
        """
        async with self._arrived:
            before = len(self._held)
        await self._session.publish("", self._queue.name, message)
        await self._session.wait_for(self._wait_for_more_than(before), timeout=DELIVERY_TIMEOUT)
        async with self._arrived:
            old, self._held = self._held[:-1], self._held[-1:]
        with broker_errors():
            for copy in old:
                await copy.ack()

    async def _wait_for_more_than(self, count: int) -> None:
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self._held) > count)

    async def give_back(self) -> None:
        """Reject all copies: they are dead-lettered to the tier queue. Raises `BrokerLostError`."""
        with broker_errors():
            async with self._arrived:
                for copy in self._held:
                    await copy.reject(requeue=False)
                self._held = []
        # The queue stays until its copies have left it; it expires by itself.
        await self._session.close_channel(self._queue.channel)

    async def delete(self) -> None:
        """Drop all copies and the queue: the job is over. Raises `BrokerLostError`."""
        await self._session.unwatch(self._queue.channel)
        with broker_errors():
            await self._queue.delete(if_unused=False, if_empty=False)
        await self._session.close_channel(self._queue.channel)


async def declare_lease(session: Session, names: Names, job_id: str, tier_key: str, seconds: float) -> AbstractQueue:
    """Declare a job's lease queue on a channel of its own. Raises `BrokerLostError`.

    A queue that is there with another lease or tier (the setting was changed, the job was submitted otherwise) is
    taken as it is: it serves as well, and it may hold a copy.
    """
    name, ttl = names.lease(job_id), int(seconds * 1000)
    arguments = at_least_once(names.jobs, tier_key) | {
        "x-message-ttl": ttl,
        "x-expires": ttl * EXPIRY_FACTOR,
        "x-delivery-limit": DELIVERY_LIMIT,
    }
    channel = await session.channel(prefetch=0)
    with broker_errors():
        try:
            return await channel.declare_queue(name, durable=True, arguments=arguments)
        except ChannelPreconditionFailed:
            channel = await session.channel(prefetch=0)
            return await channel.get_queue(name)
