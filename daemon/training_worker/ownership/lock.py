"""The lock: an exclusive queue. The worker whose connection holds it is the job's only owner; it is also the inbox."""

from collections.abc import Callable

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import ChannelLockedResource

from training_worker.broker.names import Names, job_key
from training_worker.broker.session import Session, broker_errors
from training_worker.errors import JobLockedError

Inbox = Callable[[bytes], None]


class Lock:
    """A held lock. It is freed when it is released, or when its session ends."""

    def __init__(self, session: Session, job_id: str, queue: AbstractQueue) -> None:
        self._session = session
        self._job_id = job_id
        self._queue = queue

    @classmethod
    async def take(cls, session: Session, names: Names, job_id: str) -> "Lock":
        """Acquire the lock. Raises `JobLockedError` if another worker, or another slot of this one, holds it."""
        if job_id in session.locked:
            raise JobLockedError(f"job {job_id} is owned by another slot of this worker")
        session.locked.add(job_id)
        try:
            channel = await session.channel(prefetch=0)
            with broker_errors():
                queue = await _declare(channel.declare_queue, names.owner(job_id), job_id)
        except BaseException:
            session.locked.discard(job_id)
            raise
        return cls(session, job_id, queue)

    async def open_inbox(self, names: Names, receive: Inbox) -> None:
        """Pass every command for the job to ``receive`` from now on."""

        async def on_message(message: AbstractIncomingMessage) -> None:
            receive(message.body)

        await self._session.watch(self._queue.channel)
        with broker_errors():
            await self._queue.bind(names.control, job_key(self._job_id))
            await self._queue.consume(on_message, no_ack=True)

    async def release(self) -> None:
        """Free the lock. Raises `BrokerLostError`; it is free then, too."""
        try:
            await self._session.unwatch(self._queue.channel)
            with broker_errors():
                await self._queue.delete(if_unused=False, if_empty=False)
            await self._session.close_channel(self._queue.channel)
        finally:
            self._session.locked.discard(self._job_id)


async def _declare(declare: Callable[..., object], name: str, job_id: str) -> AbstractQueue:
    try:
        return await declare(name, exclusive=True)  # type: ignore[misc, no-any-return]
    except ChannelLockedResource as error:
        raise JobLockedError(f"job {job_id} is owned by another worker") from error
