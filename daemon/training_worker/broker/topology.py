"""The exchanges, queues and streams that must exist before anything else. Declaring them is idempotent."""

from collections.abc import Collection, Iterator
from typing import get_args

import msgspec
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractQueue
from pamqp.common import FieldTable

from training_schemas.jobs import GpuCount, MemoryTier, ModelFamily
from training_worker.broker.names import LEDGER_KEY, SUBMIT_KEY, Names, delayed_key, tier_key

LEDGER_AGE = "30D"
EVENTS_AGE = "7D"

# A stream drops whole segments: small ones keep its age close to the configured one.
STREAM_SEGMENT_BYTES = 50_000_000

# Counts deliveries that returned: a daemon that died, a race lost while going idle. Neither is the job's fault, so
# this is far above what happens; it only stops a message that kills every daemon that reads it.
DELIVERY_LIMIT = 1000
LOOKS_LIMIT = 1_000_000


class QueueSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A durable queue or stream as it must be: its arguments, and the exchanges and keys that it is bound by."""

    name: str
    arguments: FieldTable
    bindings: tuple[tuple[str, str], ...] = ()


def topic_exchanges(names: Names) -> tuple[str, ...]:
    """Return all exchanges of the fleet; they are durable topic exchanges."""
    return (names.jobs, names.control, names.events, names.retry)


def shared_queues(names: Names, delays: Collection[int] = ()) -> Iterator[QueueSpec]:
    """List what the fleet shares, and a queue for each of the delays (seconds). The last is the log of events.

    Leases and locks are declared when a job is claimed, and tier queues for several GPUs when the first worker or job
    needs them.
    """
    # Looking at a dead letter counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times.
    dead_letters: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": LOOKS_LIMIT}
    yield QueueSpec(name=names.dead, arguments=dead_letters)
    yield QueueSpec(name=names.intake, arguments=_work_queue(names), bindings=((names.jobs, SUBMIT_KEY),))
    for family in ModelFamily:
        for tier in MemoryTier:
            yield tier_queue(names, family, tier)
    for seconds in sorted(set(delays)):
        yield QueueSpec(
            name=names.delay_queue(seconds),
            arguments=_delay_queue(names, seconds),
            bindings=((names.retry, delayed_key(seconds, "#")),),
        )
    yield QueueSpec(name=names.ledger, arguments=_stream(LEDGER_AGE), bindings=((names.control, LEDGER_KEY),))
    yield QueueSpec(name=names.events_log, arguments=_stream(EVENTS_AGE), bindings=((names.events, "#"),))


def every_tier_queue(names: Names) -> Iterator[QueueSpec]:
    """List the tier queues that may exist, including those for several GPUs."""
    for family in ModelFamily:
        for tier in MemoryTier:
            for count in get_args(GpuCount):
                yield tier_queue(names, family, tier, count)


def tier_queue(names: Names, family: ModelFamily, tier: MemoryTier, gpu_count: int = 1) -> QueueSpec:
    """Return the queue of jobs that wait for this many GPUs of a tier."""
    key = tier_key(family, tier, gpu_count)
    bindings = ((names.jobs, key), (names.jobs, f"*.{key}"))
    return QueueSpec(name=names.tier_queue(family, tier, gpu_count), arguments=_work_queue(names), bindings=bindings)


async def declare_topology(channel: AbstractChannel, names: Names, delays: Collection[int] = ()) -> None:
    """Declare `topic_exchanges` and `shared_queues`."""
    for exchange in topic_exchanges(names):
        await channel.declare_exchange(exchange, ExchangeType.TOPIC, durable=True)
    for queue in shared_queues(names, delays):
        await _declare(channel, queue)


async def declare_tier_queue(
    channel: AbstractChannel, names: Names, family: ModelFamily, tier: MemoryTier, gpu_count: int = 1
) -> AbstractQueue:
    """Declare a `tier_queue`. The jobs' exchange must exist."""
    return await _declare(channel, tier_queue(names, family, tier, gpu_count))


async def _declare(channel: AbstractChannel, spec: QueueSpec) -> AbstractQueue:
    queue = await channel.declare_queue(spec.name, durable=True, arguments=spec.arguments)
    for exchange, key in spec.bindings:
        await queue.bind(exchange, key)
    return queue


async def delete_topology(channel: AbstractChannel, names: Names, delays: Collection[int] = ()) -> None:
    """Delete all that `declare_topology` declares, with its contents. For fleets that were only tests."""
    tiers = [spec.name for spec in every_tier_queue(names)]
    waiting = [names.delay_queue(seconds) for seconds in delays]
    for queue in (names.intake, names.dead, names.ledger, names.events_log, *tiers, *waiting):
        await channel.queue_delete(queue)
    for exchange in topic_exchanges(names):
        await channel.exchange_delete(exchange)


def _work_queue(names: Names) -> FieldTable:
    return at_least_once("", names.dead) | {"x-delivery-limit": DELIVERY_LIMIT}


def _delay_queue(names: Names, seconds: int) -> FieldTable:
    # Dead letters of this queue keep their routing key, ``30.flux.24gb``, which the tier queue is bound by as well.
    return at_least_once(names.jobs) | {"x-message-ttl": seconds * 1000}


def at_least_once(exchange: str, key: str | None = None) -> FieldTable:
    """Return the arguments of a quorum queue whose dead letters are not lost on the way to ``exchange``."""
    routing: FieldTable = {} if key is None else {"x-dead-letter-routing-key": key}
    return routing | {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _stream(age: str) -> FieldTable:
    return {"x-queue-type": "stream", "x-max-age": age, "x-stream-max-segment-size-bytes": STREAM_SEGMENT_BYTES}
