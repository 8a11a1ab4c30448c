"""The checks by AMQP alone: whether the fleet's exchanges and queues are as the workers declare them.

What exists is declared again, which changes nothing: where it differs the broker refuses, and names the first
difference. What does not exist is not created.
"""

import json
import re
import shlex
from collections.abc import Collection

import msgspec
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from training_worker.broker.names import Names
from training_worker.broker.topology import QueueSpec, every_tier_queue, shared_queues, topic_exchanges
from training_worker.doctor.findings import Finding, State, of_broker

DIFFERENCE = re.compile(r"inequivalent arg '(?P<what>[^']+)'.*: received (?P<ours>.+) but current is (?P<theirs>.+)")
VALUE = re.compile(r"(?:the value )?'(?P<value>[^']*)'(?: of type '\w+')?")
STREAM = "stream"


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange or a queue: whether it exists, and what is wrong with it."""

    name: str
    there: bool = True
    wrong: Finding | None = None


async def check(connection: AbstractConnection, names: Names, delays: Collection[int], vhost: str) -> list[Finding]:
    """Compare everything. Raises what the AMQP library does when the connection is lost."""
    exchanges = [await _exchange(connection, name, names, vhost) for name in topic_exchanges(names)]
    shared = list(shared_queues(names))
    known = {spec.name for spec in shared}
    # Queues of this worker's delays, and for several GPUs, are declared when they are needed.
    others = [spec for spec in (*shared_queues(names, delays), *every_tier_queue(names)) if spec.name not in known]
    queues = [await _queue(connection, spec, names, vhost) for spec in shared]
    later = [await _queue(connection, spec, names, vhost) for spec in others]
    return [
        *_conclude("exchanges", exchanges),
        *_conclude("queues", [*queues, *(queue for queue in later if queue.there)]),
    ]


def _conclude(what: str, seen: list[Seen]) -> list[Finding]:
    wrong = [one.wrong for one in seen if one.wrong is not None]
    absent = [one.name for one in seen if not one.there]
    if len(absent) == len(seen):
        found = f"there are no {what} of this fleet yet: the first worker that starts declares them"
        return [of_broker(what, State.OK, found)]
    if absent:
        fix = "systemctl reload training-worker  # a worker declares what is missing when it connects"
        wrong.append(of_broker(what, State.WARNING, f"{', '.join(absent)} not there, as others are", fix))
    return wrong or [of_broker(what, State.OK, f"{len(seen)} are there, as the workers declare them")]


async def _exchange(connection: AbstractConnection, name: str, names: Names, vhost: str) -> Seen:
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.get_exchange(name)
        await channel.declare_exchange(name, ExchangeType.TOPIC, durable=True)
    except ChannelNotFoundEntity:
        return Seen(name=name, there=False)
    except ChannelAccessRefused as error:
        return Seen(name=name, wrong=_refused("exchanges", name, names, error))
    except ChannelPreconditionFailed as error:
        delete = f'rabbit_exchange:delete(rabbit_misc:r(<<"{vhost}">>, exchange, <<"{name}">>), false, <<"doctor">>).'
        fix = f"rabbitmqctl eval {shlex.quote(delete)}  # then start a worker, which declares and binds it again"
        return Seen(name=name, wrong=_wrong("exchanges", name, names, f"{name}: {difference(str(error))}", fix))
    await channel.close()
    return Seen(name=name)


async def _queue(connection: AbstractConnection, spec: QueueSpec, names: Names, vhost: str) -> Seen:
    channel = await connection.channel(publisher_confirms=False)
    try:
        messages = await _messages_in(channel, spec.name)
        await channel.declare_queue(spec.name, durable=True, arguments=spec.arguments)
    except ChannelNotFoundEntity:
        return Seen(name=spec.name, there=False)
    except ChannelAccessRefused as error:
        return Seen(name=spec.name, wrong=_refused("queues", spec.name, names, error))
    except ChannelPreconditionFailed as error:
        held = "" if _is_stream(spec) else f" holds {messages} messages"
        found = f"{spec.name}{held}: {difference(str(error))}"
        fix = _replacing(spec, messages, vhost)
        return Seen(name=spec.name, wrong=_wrong("queues", spec.name, names, found, fix))
    await channel.close()
    return Seen(name=spec.name)


async def _messages_in(channel: AbstractChannel, name: str) -> int:
    queue = await channel.get_queue(name)
    return queue.declaration_result.message_count or 0


def difference(refusal: str) -> str:
    """Reword the broker's refusal of a declaration."""
    found = DIFFERENCE.search(refusal)
    if found is None:
        return refusal
    ours, theirs = (_value(found[name]) for name in ("ours", "theirs"))
    return f"{found['what']} is {theirs}, where {ours} is needed"


def _value(report: str) -> str:
    found = VALUE.fullmatch(report)
    return (found["value"] or "''") if found else report


def _is_stream(spec: QueueSpec) -> bool:
    # AMQP always reports that a stream is empty.
    return spec.arguments["x-queue-type"] == STREAM


def _replacing(spec: QueueSpec, messages: int, vhost: str) -> str:
    """Return the commands that replace a queue by one with the right arguments, which cannot be changed."""
    host, name = shlex.quote(vhost), shlex.quote(spec.name)
    delete = f"rabbitmqctl delete_queue -p {host} {name}"
    if _is_stream(spec):
        return f"{delete}  # loses its history: once no job waits or runs. Then start a worker, which declares it again"
    if not messages:
        return f"{delete}  # then start a worker, which declares it again"
    saving = {
        "src-uri": "amqp://",
        "src-queue": spec.name,
        "dest-uri": "amqp://",
        "dest-queue": f"{spec.name}.saved",
        "src-delete-after": "queue-length",
    }
    save = f"rabbitmqctl set_parameter -p {host} shovel {shlex.quote(f'save-{spec.name}')} '{json.dumps(saving)}'"
    plugin = "rabbitmq-plugins enable rabbitmq_shovel"
    return f"{plugin} && {save}  # and once it is empty: {delete}; then start a worker, and shovel them back"


def _refused(what: str, name: str, names: Names, error: Exception) -> Finding:
    fix = "the rights that `permissions` above names"
    short = name.removeprefix(f"{names.prefix}.")
    return of_broker(f"{what}.{short}", State.WARNING, f"{name} cannot be compared: {error}", fix)


def _wrong(what: str, name: str, names: Names, found: str, fix: str) -> Finding:
    return of_broker(f"{what}.{name.removeprefix(f'{names.prefix}.')}", State.ERROR, found, fix)
