"""The consumer of the tier queues: it polls them while there is work, and consumes while there is none."""

import asyncio

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from training_presets.tiers import served_tiers
from training_schemas.jobs import MemoryTier, ModelFamily
from training_worker.broker.names import Names
from training_worker.broker.session import Session, broker_errors
from training_worker.broker.topology import declare_tier_queue
from training_worker.queue.admission import Admission

# RabbitMQ serves the consumer of the highest priority first.
HIGHEST_PRIORITY = 10

# A broker to which a whole fleet reconnects at once answers late. Giving up early would add to its load.
GET_TIMEOUT = 60.0


class JobConsumer:
    """The queues that one slot can serve, on one session's channel. At most one job is held at a time."""

    def __init__(self, session: Session, queues: list[tuple[AbstractQueue, int]]) -> None:
        self._session = session
        self._queues = queues
        self._consumers: dict[str, AbstractQueue] = {}
        self._arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    @classmethod
    async def open(
        cls, session: Session, names: Names, tier: MemoryTier, families: list[ModelFamily], gpu_count: int = 1
    ) -> "JobConsumer":
        """Look up the queues, the most demanding tier first. Raises `BrokerLostError`.

        A slot of several GPUs consumes the jobs that ask for as many, and no others: the rest of it would be idle.
        """
        channel = await session.channel(prefetch=1)
        await session.watch(channel)
        with broker_errors():
            # The further a queue's tier is below the GPU's, the lower this GPU's priority: a big GPU is the overflow
            # for small jobs.
            queues = [
                (await _find(channel, names, family, served, gpu_count), HIGHEST_PRIORITY - distance)
                for distance, served in enumerate(served_tiers(tier))
                for family in families
            ]
        return cls(session, queues)

    async def take(self, admission: Admission) -> AbstractIncomingMessage | None:
        """Wait for the next job's delivery; None once the admission closes. Raises `BrokerLostError`.

        The queues may go on being consumed until `quiet` is called.
        """
        with broker_errors():
            for queue, _ in self._queues:
                if admission.closed:
                    return None
                # A get does not notice by itself that its connection is gone.
                if (message := await self._session.wait_for(queue.get(fail=False, timeout=GET_TIMEOUT))) is not None:
                    return message
            for queue, priority in self._queues:
                self._consumers[await queue.consume(self._arrived.put, arguments={"x-priority": priority})] = queue
            return await self._session.wait_for(admission.unless_closed(self._arrived.get()))

    async def quiet(self) -> None:
        """End the consuming; other deliveries of that instant return to their queues. Raises `BrokerLostError`."""
        with broker_errors():
            while self._consumers:
                tag, queue = self._consumers.popitem()
                await queue.cancel(tag)
            while not self._arrived.empty():
                await self._arrived.get_nowait().nack(requeue=True)

    async def close(self) -> None:
        """Consume nothing more; unacknowledged deliveries return to their queues. Raises `BrokerLostError`."""
        await self._session.close_channel(self._queues[0][0].channel)


async def _find(
    channel: AbstractChannel, names: Names, family: ModelFamily, tier: MemoryTier, gpu_count: int
) -> AbstractQueue:
    if gpu_count > 1:
        return await declare_tier_queue(channel, names, family, tier, gpu_count)
    return await channel.get_queue(names.tier_queue(family, tier), ensure=False)
