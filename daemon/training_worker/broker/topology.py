"""What must be on the broker before anything else: exchanges, queues and streams. Declaring is idempotent."""

from collections.abc import Collection
from typing import get_args

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractQueue
from pamqp.common import FieldTable

from training_schemas.jobs import GpuCount, MemoryTier, ModelFamily
from training_worker.broker.names import LEDGER_KEY, SUBMIT_KEY, Names, delayed_key, tier_key

LEDGER_AGE = "30D"
EVENTS_AGE = "7D"

# A stream drops whole segments: small ones keep its age close to what is promised.
STREAM_SEGMENT_BYTES = 50_000_000

# Counts deliveries that came back: a daemon that died, a race lost while going idle. Neither is the job's fault, so
# this is far above what happens; it only stops a message that kills every daemon that looks at it.
DELIVERY_LIMIT = 1000
LOOKS_LIMIT = 1_000_000


async def declare_topology(channel: AbstractChannel, names: Names, delays: Collection[int] = ()) -> None:
    """Declare all that is shared by the fleet, and a queue for each of the delays (seconds).

    Leases and locks are declared when a job is claimed, and tier queues for several cards when the first worker or job
    needs them.
    """
    jobs = await channel.declare_exchange(names.jobs, ExchangeType.TOPIC, durable=True)
    await channel.declare_exchange(names.control, ExchangeType.TOPIC, durable=True)
    events = await channel.declare_exchange(names.events, ExchangeType.TOPIC, durable=True)

    # Looking at a letter counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times.
    letters: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": LOOKS_LIMIT}
    await channel.declare_queue(names.dead, durable=True, arguments=letters)
    intake = await channel.declare_queue(names.intake, durable=True, arguments=_work_queue(names))
    await intake.bind(jobs, SUBMIT_KEY)
    for family in ModelFamily:
        for tier in MemoryTier:
            await declare_tier_queue(channel, names, family, tier)
    retry = await channel.declare_exchange(names.retry, ExchangeType.TOPIC, durable=True)
    for seconds in sorted(set(delays)):
        waiting = await channel.declare_queue(
            names.delay_queue(seconds), durable=True, arguments=_delay_queue(names, seconds)
        )
        await waiting.bind(retry, delayed_key(seconds, "#"))

    ledger = await channel.declare_queue(names.ledger, durable=True, arguments=_stream(LEDGER_AGE))
    await ledger.bind(names.control, LEDGER_KEY)
    log = await channel.declare_queue(names.events_log, durable=True, arguments=_stream(EVENTS_AGE))
    await log.bind(events, "#")


async def declare_tier_queue(
    channel: AbstractChannel, names: Names, family: ModelFamily, tier: MemoryTier, gpu_count: int = 1
) -> AbstractQueue:
    """Declare the queue of jobs that wait for so many cards of a tier. The jobs' exchange must be there."""
    key = tier_key(family, tier, gpu_count)
    queue = await channel.declare_queue(
        names.tier_queue(family, tier, gpu_count), durable=True, arguments=_work_queue(names)
    )
    await queue.bind(names.jobs, key)
    await queue.bind(names.jobs, f"*.{key}")
    return queue


async def delete_topology(channel: AbstractChannel, names: Names, delays: Collection[int] = ()) -> None:
    """Delete all that `declare_topology` declares, with what is in it. For fleets that were only tried out."""
    tiers = [
        names.tier_queue(family, tier, count)
        for family in ModelFamily
        for tier in MemoryTier
        for count in get_args(GpuCount)
    ]
    waiting = [names.delay_queue(seconds) for seconds in delays]
    for queue in (names.intake, names.dead, names.ledger, names.events_log, *tiers, *waiting):
        await channel.queue_delete(queue)
    for exchange in (names.jobs, names.retry, names.control, names.events):
        await channel.exchange_delete(exchange)


def _work_queue(names: Names) -> FieldTable:
    return at_least_once("", names.dead) | {"x-delivery-limit": DELIVERY_LIMIT}


def _delay_queue(names: Names, seconds: int) -> FieldTable:
    # Letters keep their routing key, ``30.flux.24gb``, which the tier queue is bound by as well.
    return at_least_once(names.jobs) | {"x-message-ttl": seconds * 1000}


def at_least_once(exchange: str, key: str | None = None) -> FieldTable:
    """Arguments of a quorum queue whose dead letters are not lost on the way to ``exchange``."""
    routing: FieldTable = {} if key is None else {"x-dead-letter-routing-key": key}
    return routing | {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _stream(age: str) -> FieldTable:
    return {"x-queue-type": "stream", "x-max-age": age, "x-stream-max-segment-size-bytes": STREAM_SEGMENT_BYTES}
