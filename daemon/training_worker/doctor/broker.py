"""The broker: whether it answers, is new enough, and lets this worker's user do what a worker does."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from pamqp.common import FieldTable
from yarl import URL

from training_worker.broker.names import Names
from training_worker.broker.rights import Role, command_lines
from training_worker.broker.session import address_of, broker_errors, persistent, tls_advice
from training_worker.doctor.findings import Finding, State
from training_worker.errors import BrokerError
from training_worker.settings import Settings

GROUP = "broker"
LIMIT = 15.0
LEAST_VERSION = (3, 10)
# RabbitMQ's own unless it is set up otherwise, seconds.
USUAL_CONSUMER_TIMEOUT = 1800.0
# What is tried is gone by itself after so long, should we not get to delete it.
TRIAL_EXPIRY_MS = 60_000


def check(settings: Settings) -> Iterator[Finding]:
    """Try it. A queue that nobody knows is made and deleted; nothing of the fleet is touched."""
    yield from asyncio.run(_findings(settings))


async def _findings(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    try:
        async with asyncio.timeout(LIMIT):
            found += [finding async for finding in _try(settings)]
    except (BrokerError, TimeoutError) as error:
        found.append(_unreachable(settings, error))
    found.append(_consumer_timeout(settings))
    return found


def _unreachable(settings: Settings, error: Exception) -> Finding:
    try:
        address = address_of(settings.amqp_url)
    except BrokerError:
        return _finding("reachable", State.ERROR, str(error), "amqp_url in the settings: amqp://USER:PASSWORD@HOST/")
    where = f"{address.host}:{address.port}"
    why = f"{error}{tls_advice(address, str(error))}" if str(error) else f"no answer within {LIMIT:.0f} s"
    if "ACCESS_REFUSED" in why:
        mend = f"rabbitmqctl change_password {address.user} NEW  # or amqp_url in the settings"
    else:
        mend = f"nc -vz {address.host} {address.port}  # then: rabbitmq-diagnostics listeners, on the broker's host"
    return _finding("reachable", State.ERROR, f"{where}: {why}", mend)


async def _try(settings: Settings) -> AsyncIterator[Finding]:
    address = address_of(settings.amqp_url)
    with broker_errors():
        connection = aio_pika.Connection(address, client_properties={"connection_name": "training-worker doctor"})
        await connection.connect(LIMIT)
    try:
        yield _finding("reachable", State.OK, f"{address.host}:{address.port} as {address.user}")
        yield version(_version_of(connection))
        yield await _rights(connection, address, settings)
        yield await _set_up(connection, Names(settings.prefix))
    finally:
        await connection.close()


def _version_of(connection: AbstractConnection) -> str:
    transport = connection.transport
    told = None if transport is None else transport.connection.server_properties.get("version")
    return told.decode() if isinstance(told, bytes) else str(told)


def version(told: str) -> Finding:
    """What the broker's own version says."""
    try:
        numbers = tuple(map(int, told.split(".")[:2]))
    except ValueError:
        return _finding("version", State.WARNING, f"not known: {told}", "rabbitmqctl version")
    if numbers < LEAST_VERSION:
        mend = "apt-get install --only-upgrade rabbitmq-server  # on the broker's host"
        return _finding("version", State.ERROR, f"RabbitMQ {told}, where 3.10 or later is needed", mend)
    return _finding("version", State.OK, f"RabbitMQ {told}")


async def _rights(connection: AbstractConnection, address: URL, settings: Settings) -> Finding:
    """Declare a quorum queue as a lease is, publish to it, consume it, and delete it."""
    names = Names(settings.prefix)
    queue_name = names.lease(f"doctor-{secrets.token_hex(4)}")
    doing = "declare a quorum queue"
    try:
        with broker_errors():
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            arguments: FieldTable = {"x-queue-type": "quorum", "x-expires": TRIAL_EXPIRY_MS}
            queue = await channel.declare_queue(queue_name, durable=True, arguments=arguments)
            doing = "publish to it"
            await channel.default_exchange.publish(persistent(b"{}"), queue_name)
            doing = "consume it"
            message = await queue.get(timeout=LIMIT)
            if message is not None:
                await message.ack()
            doing = "delete it"
            await queue.delete(if_unused=False, if_empty=False)
    except BrokerError as error:
        vhost = address.path.removeprefix("/") or "/"
        mend = " && ".join(command_lines(Role.WORKER, names, user=address.user or "guest", vhost=vhost))
        return _finding("permissions", State.ERROR, f"cannot {doing}: {error}", mend)
    return _finding("permissions", State.OK, "a quorum queue was declared, published to, consumed and deleted")


async def _set_up(connection: AbstractConnection, names: Names) -> Finding:
    for queue in (names.intake, names.ledger, names.dead, names.events_log):
        channel = await connection.channel(publisher_confirms=False)
        try:
            await channel.get_queue(queue)
        except ChannelNotFoundEntity:
            found = f"there is no {queue} yet: the first worker that starts declares it"
            return _finding("queues", State.OK, found)
        await channel.close()
    return _finding("queues", State.OK, f"intake, ledger, dead queue and log of {names.prefix} are there")


def _consumer_timeout(settings: Settings) -> Finding:
    """No client is told the broker's limit."""
    held = settings.lease / 2
    found = f"a delivery is held for {held:.0f} s at most, half the lease; the broker's own limit is not known"
    if held >= USUAL_CONSUMER_TIMEOUT:
        mend = f"consumer_timeout = {int(held * 2000)}  # in rabbitmq.conf; or a shorter lease in the settings"
        return _finding("consumer_timeout", State.WARNING, f"{found}, and is 1800 s by default", mend)
    return _finding("consumer_timeout", State.OK, found)


def _finding(name: str, state: State, found: str, mend: str | None = None) -> Finding:
    return Finding(group=GROUP, name=name, state=state, found=found, mend=mend)
