"""A session: one connection to the broker, from its opening to its loss. Only what is on the broker outlives it.

The connection is a plain one: after a loss nothing is restored silently, since whether a job is still ours must be
checked again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Collection, Iterator
from typing import Any, TypeVar

import aio_pika
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity, DeliveryError
from aiormq.abc import AbstractChannel as UnderlayChannel
from aiormq.exceptions import PublishError
from yarl import URL

from training_worker.broker.names import Names
from training_worker.broker.topology import declare_topology
from training_worker.errors import BrokerError, BrokerLostError

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0

# After a power loss, the broker holds a lock for two of these, seconds. An address with ?heartbeat=N sets its own.
HEARTBEAT = 20

T = TypeVar("T")


@contextlib.contextmanager
def broker_errors() -> Iterator[None]:
    """Turn the AMQP libraries' errors into ours."""
    try:
        yield
    except DeliveryError as error:
        raise BrokerError(f"message was returned: {error}") from error
    except (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.CancelledError) as error:
        # The libraries confuse the two: a call that timed out cancels whatever else waits on its channel, and the task
        # of that would end unnoticed; and a connection that is cancelled while it opens may raise an error of its own.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise asyncio.CancelledError from error
        raise BrokerLostError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        # The error of a wait on a channel that is closed meanwhile for no given reason.
        if type(error) is not Exception:
            raise
        raise BrokerLostError("channel closed") from error


def address_of(url: str) -> URL:
    """Return the broker's address, with our heartbeat. Raises `BrokerError` if it is none."""
    try:
        address = make_url(url)
    except ValueError as error:
        raise BrokerError(f"cannot read the broker's address: {error}") from None
    if address.scheme not in ("amqp", "amqps") or not address.host:
        raise BrokerError("cannot read the broker's address: expected amqp://HOST/ or amqps://HOST/")
    return address if "heartbeat" in address.query else address.update_query(heartbeat=HEARTBEAT)


def tls_advice(address: URL, error: str) -> str:
    """Name what an operator may have to change if TLS failed. The library's message names no setting."""
    if address.scheme != "amqps":
        return ""
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return "; amqp_ca_file must hold the authority that signed the broker's certificate"
    if "ALERT" in error or "reset" in error:
        return "; a broker that asks for certificates refuses without amqp_cert_file, or if it does not know its signer"
    return ""


def persistent(body: bytes, **properties: Any) -> Message:
    """Return a JSON message that survives the broker's restart."""
    properties.setdefault("content_type", "application/json")
    return Message(body, delivery_mode=DeliveryMode.PERSISTENT, **properties)


class Session:
    """A connection with a channel for publishing; ``locked`` are the jobs whose locks it holds."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._exchanges: dict[str, AbstractExchange] = {"": channel.default_exchange}
        self.locked: set[str] = set()
        self.lost = asyncio.Event()
        connection.close_callbacks.add(self._on_close)
        channel.close_callbacks.add(self._on_close)

    @classmethod
    async def open(
        cls, url: str, names: Names, *, client: str, delays: Collection[int] = (), declare: bool = True
    ) -> "Session":
        """Connect and declare the topology, within a bounded time. Raises `BrokerError`.

        Without ``declare``, the topology is used as it is: no right to declare is needed where a worker has been.
        """
        address = address_of(url)
        try:
            return await cls._open(address, names, client, delays, declare=declare)
        except BrokerLostError as error:
            why = f"{error}{tls_advice(address, str(error))}"
            raise BrokerLostError(f"cannot reach the broker at {address.host}:{address.port}: {why}") from error

    @classmethod
    async def _open(
        cls, address: URL, names: Names, client: str, delays: Collection[int], *, declare: bool
    ) -> "Session":
        with broker_errors():
            connection = aio_pika.Connection(address, client_properties={"connection_name": client})
            try:
                await connection.connect(CONNECT_TIMEOUT)
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                session = cls(connection, channel)
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    if declare or not await session._is_declared(names):
                        await declare_topology(channel, names, delays)
                    await session._find_exchanges(names)
            except BaseException:
                await connection.close()
                raise
        return session

    async def _is_declared(self, names: Names) -> bool:
        """Return whether the last of the topology exists. The check needs no rights, but may close the channel."""
        channel = await self._connection.channel(publisher_confirms=False)
        try:
            await channel.get_queue(names.events_log)
        except ChannelNotFoundEntity:
            return False
        await channel.close()
        return True

    async def _find_exchanges(self, names: Names) -> None:
        for name in (names.jobs, names.retry, names.control, names.events):
            self._exchanges[name] = await self._channel.get_exchange(name, ensure=False)

    def _on_close(self, *_: object) -> None:
        self.lost.set()

    async def channel(self, *, prefetch: int) -> AbstractChannel:
        """Open a separate channel; ``prefetch`` 0 sets no limit. Raises `BrokerLostError`."""
        with broker_errors():
            channel = await self._connection.channel(publisher_confirms=False)
            if prefetch:
                await channel.set_qos(prefetch_count=prefetch)
            return channel

    async def watch(self, channel: AbstractChannel) -> None:
        """Count this session as lost from now on if the broker closes the channel or cancels one of its consumers.

        Nobody would notice otherwise: a consumer that is gone looks like one that has nothing to do.
        """
        underlying = await self._underlying(channel)
        underlying.on_consumer_cancel_callbacks.add(self._on_close)
        channel.close_callbacks.add(self._on_close)

    async def unwatch(self, channel: AbstractChannel) -> None:
        """Ignore from now on what happens to the channel: it is our own doing. Raises `BrokerLostError`."""
        underlying = await self._underlying(channel)
        underlying.on_consumer_cancel_callbacks.discard(self._on_close)
        channel.close_callbacks.discard(self._on_close)

    async def _underlying(self, channel: AbstractChannel) -> UnderlayChannel:
        with broker_errors():
            return await channel.get_underlay_channel()

    async def close_channel(self, channel: AbstractChannel) -> None:
        """Close one of this session's channels; unacknowledged deliveries return. Raises `BrokerLostError`."""
        await self.unwatch(channel)
        with broker_errors():
            await channel.close()

    async def publish(self, exchange: str, key: str, message: Message, *, mandatory: bool = True) -> None:
        """Publish and wait for the broker's confirm. Raises `BrokerError`."""
        with broker_errors():
            await self._exchanges[exchange].publish(message, key, mandatory=mandatory)

    async def offer(self, exchange: str, key: str, message: Message) -> bool:
        """Publish to the consumers of this moment. False if there are none. Raises `BrokerError`."""
        with broker_errors():
            try:
                await self._exchanges[exchange].publish(message, key, mandatory=True)
            except PublishError:
                return False
        return True

    async def wait_for(self, awaitable: Awaitable[T], *, timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Wait for something that a lost connection would keep from ever happening, at most ``timeout`` seconds.

        Raises `BrokerLostError` on either.
        """
        work = asyncio.ensure_future(awaitable)
        lost = asyncio.create_task(self.lost.wait(), name="session-lost")
        try:
            await asyncio.wait({work, lost}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not work.cancelled():
                return work.result()
            raise BrokerLostError(
                "connection lost" if lost.done() or work.cancelled() else f"no answer within {timeout:.0f} s"
            )
        finally:
            work.cancel()
            lost.cancel()

    async def close(self) -> None:
        """Close the connection: locks are freed, deliveries return. Bounded, and never fails."""
        self.lost.set()
        with contextlib.suppress(BrokerError), broker_errors():
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._connection.close()
