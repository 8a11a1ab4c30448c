"""Taking a job from the tier queues: a sweep while there is work, consumers while there is none."""

import asyncio

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from training_presets.tiers import served_tiers
from training_schemas.jobs import MemoryTier, ModelFamily
from training_worker.broker.names import Names
from training_worker.broker.session import Session, broker_errors
from training_worker.gate import Gate

# RabbitMQ serves the consumer of the highest priority first.
HIGHEST_PRIORITY = 10


class Source:
    """The queues that one card can serve, on one session's channel. At most one job is held at a time."""

    def __init__(self, session: Session, queues: list[tuple[AbstractQueue, int]]) -> None:
        self._session = session
        self._queues = queues
        self._going_quiet: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, session: Session, names: Names, tier: MemoryTier, families: list[ModelFamily]) -> "Source":
        """Look up the queues, the most demanding tier first. Raises `BrokerLostError`."""
        channel = await session.channel(prefetch=1)
        await session.watch(channel)
        with broker_errors():
            # The further a queue's tier is below the card's, the later it is this card's turn: a big card is the
            # overflow for small jobs.
            queues = [
                (await channel.get_queue(names.tier_queue(family, served), ensure=False), HIGHEST_PRIORITY - distance)
                for distance, served in enumerate(served_tiers(tier))
                for family in families
            ]
        return cls(session, queues)

    async def take(self, gate: Gate) -> AbstractIncomingMessage | None:
        """The next job's delivery, for as long as it takes; None once the gate is closed. Raises `BrokerLostError`."""
        await self._quiet()
        with broker_errors():
            for queue, _ in self._queues:
                if gate.closed:
                    return None
                if (message := await queue.get(fail=False)) is not None:
                    return message
            return await self._wait(gate)

    async def _wait(self, gate: Gate) -> AbstractIncomingMessage | None:
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        consumers = [
            (queue, await queue.consume(arrived.put, arguments={"x-priority": priority}))
            for queue, priority in self._queues
        ]
        first = await self._session.wait_for(gate.unless_closed(arrived.get()))
        # The claim need not wait for this.
        self._going_quiet = asyncio.create_task(_go_quiet(consumers, arrived), name="stop-consuming")
        return first

    async def _quiet(self) -> None:
        going, self._going_quiet = self._going_quiet, None
        if going is not None:
            await going

    async def close(self) -> None:
        """Stop consuming; whatever was delivered goes back. Raises `BrokerLostError`."""
        await self._quiet()
        await self._session.close_channel(self._queues[0][0].channel)


async def _go_quiet(
    consumers: list[tuple[AbstractQueue, str]], arrived: asyncio.Queue[AbstractIncomingMessage]
) -> None:
    with broker_errors():
        for queue, tag in consumers:
            await queue.cancel(tag)
        # Each of the other consumers may have been given one in that instant.
        while not arrived.empty():
            await arrived.get_nowait().nack(requeue=True)
