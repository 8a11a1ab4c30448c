"""The checks of the broker: whether it answers, is new enough, and lets this worker's user do what a worker does."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator

import aio_pika
import msgspec
from aio_pika.abc import AbstractConnection, AbstractQueue
from pamqp.common import FieldTable
from yarl import URL

from training_worker.broker.names import Names
from training_worker.broker.permissions import Role, command_lines
from training_worker.broker.session import address_of, broker_errors, persistent, tls_advice
from training_worker.doctor import broker_management, broker_topology, consumer_timeout
from training_worker.doctor.findings import Finding, State, of_broker
from training_worker.errors import BrokerError
from training_worker.settings import Settings

LIMIT = 15.0
# A broker with an alarm no longer answers. One with a node down takes 5 s to delete a queue.
TRIAL_LIMIT = 10.0
CLOSE_LIMIT = 3.0
LEAST_VERSION = (3, 10)
# The trial queue expires after this long, in case it cannot be deleted.
TRIAL_EXPIRY_MS = 60_000
AMQP_PORTS = {"amqp": 5672, "amqps": 5671}


def check(settings: Settings) -> Iterator[Finding]:
    """Test the broker. A temporary queue is declared and deleted; nothing of the fleet is changed."""
    try:
        address = address_of(settings.amqp_url)
    except BrokerError as error:
        yield of_broker("reachable", State.ERROR, str(error), "amqp_url in the settings: amqp://USER:PASSWORD@HOST/")
        return
    report, found = asyncio.run(_look(settings, address))
    yield from found
    yield _consumer_timeout(settings, address, report)


async def _look(settings: Settings, address: URL) -> tuple[broker_management.Known, list[Finding]]:
    try:
        async with asyncio.timeout(LIMIT):
            connection = await _connect(address)
    except (BrokerError, TimeoutError) as error:
        known = await broker_management.look(settings, vhost_of(address))
        return known, [_unreachable(address, error), *known.findings]
    try:
        return await _look_inside(settings, address, connection)
    finally:
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT):
                with broker_errors():
                    await connection.close()


async def _look_inside(
    settings: Settings, address: URL, connection: AbstractConnection
) -> tuple[broker_management.Known, list[Finding]]:
    names, vhost = Names(settings.prefix), vhost_of(address)
    # Before anything is published: while there is an alarm, nothing is answered after that.
    shared = await _declared(connection, names, settings, vhost)
    trial = Trial(connection, names)
    refused = await trial.make()
    known = await broker_management.look(
        settings, vhost, cluster=_server_property(connection, "cluster_name"), trial=trial.queue_name
    )
    refused = refused or await trial.end()
    found = [
        of_broker("reachable", State.OK, f"{address.host}:{address.port} as {address.user}"),
        version(_server_property(connection, "version")),
        _rights(refused, names, address, vhost),
        *shared,
        *known.findings,
    ]
    return known, found


async def _declared(connection: AbstractConnection, names: Names, settings: Settings, vhost: str) -> list[Finding]:
    try:
        async with asyncio.timeout(LIMIT):
            with broker_errors():
                return await broker_topology.check(connection, names, [settings.grace, *settings.retry_delays], vhost)
    except (BrokerError, TimeoutError) as error:
        why = str(error) or f"no answer within {LIMIT:.0f} s"
        return [of_broker("queues", State.ERROR, f"cannot be compared: {why}", "rabbitmq-diagnostics check_running")]


async def _connect(address: URL) -> AbstractConnection:
    with broker_errors():
        connection = aio_pika.Connection(address, client_properties={"connection_name": "training-worker doctor"})
        await connection.connect(LIMIT)
    return connection


def vhost_of(address: URL) -> str:
    """Return the virtual host in a broker's address, as the AMQP library reads it."""
    return address.path.removeprefix("/") or "/"


def _unreachable(address: URL, error: Exception) -> Finding:
    where = f"{address.host}:{address.port}"
    why = f"{error}{tls_advice(address, str(error))}" if str(error) else f"no answer within {LIMIT:.0f} s"
    if "ACCESS_REFUSED" in why:
        fix = f"rabbitmqctl change_password {address.user} NEW  # or amqp_url in the settings"
    else:
        fix = f"nc -vz {address.host} {address.port}  # then: rabbitmq-diagnostics listeners, on the broker's host"
    return of_broker("reachable", State.ERROR, f"{where}: {why}", fix)


def _server_property(connection: AbstractConnection, what: str) -> str:
    transport = connection.transport
    report = None if transport is None else transport.connection.server_properties.get(what)
    return report.decode() if isinstance(report, bytes) else str(report)


def version(report: str) -> Finding:
    """Judge the version that the broker reports."""
    try:
        numbers = tuple(map(int, report.split(".")[:2]))
    except ValueError:
        return of_broker("version", State.WARNING, f"not known: {report}", "rabbitmqctl version")
    if numbers < LEAST_VERSION:
        fix = "apt-get install --only-upgrade rabbitmq-server  # on the broker's host"
        return of_broker("version", State.ERROR, f"RabbitMQ {report}, where 3.10 or later is needed", fix)
    return of_broker("version", State.OK, f"RabbitMQ {report}")


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that was refused, and why; ``silent`` if there was no answer."""

    doing: str
    why: str
    silent: bool


class Trial:
    """A quorum queue like a lease queue: declared, published to, consumed, and finally deleted."""

    def __init__(self, connection: AbstractConnection, names: Names) -> None:
        self.queue_name = names.lease(f"doctor-{secrets.token_hex(4)}")
        self._connection = connection
        self._queue: AbstractQueue | None = None
        self._doing = ""

    async def make(self) -> Refused | None:
        """Do everything but the deletion; return what was refused."""
        return await self._try(self._make)

    async def end(self) -> Refused | None:
        """Delete it."""
        return await self._try(self._delete)

    async def _try(self, steps: Callable[[], Awaitable[None]]) -> Refused | None:
        try:
            async with asyncio.timeout(TRIAL_LIMIT):
                with broker_errors():
                    await steps()
        except BrokerError as error:
            return Refused(doing=self._doing, why=str(error), silent=False)
        except TimeoutError:
            return Refused(doing=self._doing, why=f"no answer within {TRIAL_LIMIT:.0f} s", silent=True)
        return None

    async def _make(self) -> None:
        self._doing = "declare a quorum queue"
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        arguments: FieldTable = {"x-queue-type": "quorum", "x-expires": TRIAL_EXPIRY_MS}
        self._queue = await channel.declare_queue(self.queue_name, durable=True, arguments=arguments)
        self._doing = "publish to it"
        await channel.default_exchange.publish(persistent(b"{}"), self.queue_name)
        self._doing = "consume it"
        message = await self._queue.get(timeout=LIMIT)
        if message is not None:
            await message.ack()

    async def _delete(self) -> None:
        self._doing = "delete it"
        if self._queue is not None:
            await self._queue.delete(if_unused=False, if_empty=False)


def _rights(refused: Refused | None, names: Names, address: URL, vhost: str) -> Finding:
    if refused is None:
        return of_broker("permissions", State.OK, "a quorum queue was declared, published to, consumed and deleted")
    if refused.silent:
        look = "rabbitmq-diagnostics alarms && rabbitmq-diagnostics cluster_status"
        fix = f"{look}  # on the broker's host: an alarm, or too few nodes, keep it from answering"
    else:
        fix = " && ".join(command_lines(Role.WORKER, names, user=address.user or "guest", vhost=vhost))
    return of_broker("permissions", State.ERROR, f"cannot {refused.doing}: {refused.why}", fix)


def _consumer_timeout(settings: Settings, address: URL, known: broker_management.Known) -> Finding:
    if known.consumer_timeout is not None:
        return consumer_timeout.judge(settings, known.consumer_timeout, "a policy of the lease queues")
    limit = consumer_timeout.of_node(address.host or "", address.port or AMQP_PORTS[address.scheme])
    return consumer_timeout.judge(settings, limit, "the broker on this host")
