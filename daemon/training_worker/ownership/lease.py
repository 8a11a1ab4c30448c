"""The lease: a quorum queue that holds a copy of the job.

If its owner is gone for longer than the lease, the copy is dead-lettered: after a grace, the job is back in its tier
queue.
"""

import asyncio
import uuid

import msgspec
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelPreconditionFailed
from pamqp.common import FieldTable

from training_worker.broker.session import Session, broker_errors
from training_worker.broker.topology import DELIVERY_LIMIT, at_least_once

# A queue that expires drops its messages: it must live far longer than they do.
EXPIRY_FACTOR = 10

DELIVERY_TIMEOUT = 30.0


class LeaseTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of a lease: how long a copy is kept in which queue, and where it goes then."""

    queue: str
    seconds: float
    exchange: str
    key: str


class Lease:
    """The owner's hold on the lease queue: copies that are delivered and not acknowledged do not expire."""

    def __init__(self, session: Session, queue: AbstractQueue) -> None:
        self._session = session
        self._queue = queue
        self._held: list[AbstractIncomingMessage] = []
        self._consumer: str | None = None
        self._arrived = asyncio.Condition()

    @classmethod
    async def open(cls, session: Session, queue: AbstractQueue) -> "Lease":
        """Consume the queue. Usually nothing is held yet. Raises `BrokerLostError`."""
        lease = cls(session, queue)
        await session.watch(queue.channel)
        with broker_errors():
            lease._consumer = await queue.consume(lease._receive)
        return lease

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        async with self._arrived:
            self._held.append(message)
            self._arrived.notify_all()

    async def renew(self, message: Message) -> None:
        """Publish a fresh copy, wait until it is held, then drop all others. Raises `BrokerLostError`.

        No copy is held for longer than from one renewal to the next, so no consumer timeout ever strikes. One that was
        in the queue before may have outlived the lease: holding that one instead would lose the job with the
        connection.
        """
        message.correlation_id = name = uuid.uuid4().hex
        await self._session.publish("", self._queue.name, message)
        await self._session.wait_for(self._wait_for(name), timeout=DELIVERY_TIMEOUT)
        async with self._arrived:
            old = [copy for copy in self._held if copy.correlation_id != name]
            self._held = [copy for copy in self._held if copy.correlation_id == name]
        with broker_errors():
            for copy in old:
                await copy.ack()

    async def _wait_for(self, name: str) -> None:
        async with self._arrived:
            await self._arrived.wait_for(lambda: any(copy.correlation_id == name for copy in self._held))

    async def stop_consuming(self) -> None:
        """Keep the held copies, and consume no more: those are the next owner's. Raises `BrokerLostError`."""
        if self._consumer is not None:
            with broker_errors():
                await self._queue.cancel(self._consumer)
            self._consumer = None

    async def drop(self) -> None:
        """Drop all copies that are held. Raises `BrokerLostError`.

        The queue stays, since another worker may own the job by now; it expires by itself.
        """
        await self._session.unwatch(self._queue.channel)
        with broker_errors():
            async with self._arrived:
                for copy in self._held:
                    await copy.ack()
                self._held = []
        await self._session.close_channel(self._queue.channel)

    async def close(self) -> None:
        """Release the queue; held copies return to it. Raises `BrokerLostError`."""
        await self._session.close_channel(self._queue.channel)

    async def delete(self) -> None:
        """Drop all copies and the queue of an ended job. Raises `BrokerLostError`."""
        await self._session.unwatch(self._queue.channel)
        with broker_errors():
            await self._queue.delete(if_unused=False, if_empty=False)
        await self._session.close_channel(self._queue.channel)


def lease_arguments(terms: LeaseTerms) -> FieldTable:
    """Return the arguments that a lease queue is declared with."""
    ttl = int(terms.seconds * 1000)
    return at_least_once(terms.exchange, terms.key) | {
        "x-message-ttl": ttl,
        "x-expires": ttl * EXPIRY_FACTOR,
        "x-delivery-limit": DELIVERY_LIMIT,
    }


async def declare_lease(session: Session, terms: LeaseTerms) -> AbstractQueue:
    """Declare a job's lease queue on a channel of its own. Raises `BrokerLostError`.

    A queue that exists with other arguments (the setting was changed, the job was submitted otherwise) is used as it
    is: it serves as well, and it may hold a copy.
    """
    channel = await session.channel(prefetch=0)
    with broker_errors():
        try:
            return await channel.declare_queue(terms.queue, durable=True, arguments=lease_arguments(terms))
        except ChannelPreconditionFailed:
            channel = await session.channel(prefetch=0)
            return await channel.get_queue(terms.queue)
