"""The connection: sessions one after the other, each opened when the last one was lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection

import structlog
from aio_pika import Message

from training_worker.broker.names import Names
from training_worker.broker.session import Session
from training_worker.errors import BrokerError, BrokerLostError
from training_worker.observations import BrokerChanged, Observer, unobserved

FIRST_DELAY = 0.2
LONGEST_DELAY = 15.0

log = structlog.get_logger()


class Connection:
    """Keeps a session open for as long as `run` runs."""

    def __init__(
        self, url: str, names: Names, *, client: str, delays: Collection[int] = (), observe: Observer = unobserved
    ) -> None:
        self._url = url
        self._observe = observe
        self._delays = delays
        self._client = client
        self._session: Session | None = None
        self._changed = asyncio.Condition()
        self.names = names

    async def run(self) -> None:
        """Connect, wait for the loss, connect again; for ever, with back-off."""
        try:
            while True:
                session = await self._connect()
                await self._show(session)
                await session.lost.wait()
                await self._show(None)
                log.warning("broker_lost")
                await session.close()
        finally:
            if self._session is not None:
                await self._session.close()

    async def _connect(self) -> Session:
        delay = FIRST_DELAY
        while True:
            try:
                session = await Session.open(self._url, self.names, client=self._client, delays=self._delays)
            except BrokerError as error:
                log.warning("broker_unreachable", error=str(error), retry_seconds=round(delay, 1))
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - spreads a fleet, hides nothing
                delay = min(delay * 2, LONGEST_DELAY)
            else:
                log.info("broker_connected")
                return session

    async def _show(self, session: Session | None) -> None:
        self._observe(BrokerChanged(connected=session is not None))
        async with self._changed:
            self._session = session
            self._changed.notify_all()

    @property
    def connected(self) -> bool:
        """Whether there is a session that is not known to be lost."""
        return self._session is not None and not self._session.lost.is_set()

    async def session(self) -> Session:
        """The session, once there is one that is not known to be lost."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.connected)
            assert self._session is not None  # noqa: S101 - the condition that was waited for
            return self._session

    async def serve(self, on_session: Callable[[Session], Awaitable[None]]) -> None:
        """Set something up on each session; for ever."""
        while True:
            session = await self.session()
            try:
                await on_session(session)
                await session.lost.wait()
            except BrokerLostError:
                session.lost.set()

    async def publish(self, exchange: str, key: str, message: Message) -> None:
        """Publish, for as long as it takes; at least once.

        The message is published again on the next session if this one is lost, or if the message was returned: its
        queue was deleted, and a new session declares it again.
        """
        while True:
            session = await self.session()
            try:
                return await session.publish(exchange, key, message)
            except BrokerError as error:
                log.warning("not_published", key=key, error=str(error))
                session.lost.set()
