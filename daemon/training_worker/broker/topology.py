"""What must be on the broker before anything else: exchanges, queues and streams. Declaring is idempotent."""

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from pamqp.common import FieldTable

from training_schemas.jobs import MemoryTier, ModelFamily
from training_worker.broker.names import SUBMIT_KEY, Names, tier_key

LEDGER_AGE = "30D"
EVENTS_AGE = "7D"

# A stream drops whole segments: small ones keep its age close to what is promised.
STREAM_SEGMENT_BYTES = 50_000_000

# Counts deliveries that came back: a daemon that died, a race lost while going idle. Neither is the job's fault, so
# this is far above what happens; it only stops a message that kills every daemon that looks at it.
DELIVERY_LIMIT = 1000


async def declare_topology(channel: AbstractChannel, names: Names) -> None:
    """Declare all that is shared by the fleet. Leases and locks are declared when a job is claimed."""
    jobs = await channel.declare_exchange(names.jobs, ExchangeType.TOPIC, durable=True)
    await channel.declare_exchange(names.control, ExchangeType.TOPIC, durable=True)
    events = await channel.declare_exchange(names.events, ExchangeType.TOPIC, durable=True)

    await channel.declare_queue(names.dead, durable=True, arguments={"x-queue-type": "quorum"})
    intake = await channel.declare_queue(names.intake, durable=True, arguments=_work_queue(names))
    await intake.bind(jobs, SUBMIT_KEY)
    for family in ModelFamily:
        for tier in MemoryTier:
            queue = await channel.declare_queue(
                names.tier_queue(family, tier), durable=True, arguments=_work_queue(names)
            )
            await queue.bind(jobs, tier_key(family, tier))

    await channel.declare_queue(names.ledger, durable=True, arguments=_stream(LEDGER_AGE))
    log = await channel.declare_queue(names.events_log, durable=True, arguments=_stream(EVENTS_AGE))
    await log.bind(events, "#")


async def delete_topology(channel: AbstractChannel, names: Names) -> None:
    """Delete all that `declare_topology` declares, with what is in it. For fleets that were only tried out."""
    tiers = [names.tier_queue(family, tier) for family in ModelFamily for tier in MemoryTier]
    for queue in (names.intake, names.dead, names.ledger, names.events_log, *tiers):
        await channel.queue_delete(queue)
    for exchange in (names.jobs, names.control, names.events):
        await channel.exchange_delete(exchange)


def _work_queue(names: Names) -> FieldTable:
    return at_least_once("", names.dead) | {"x-delivery-limit": DELIVERY_LIMIT}


def at_least_once(exchange: str, key: str) -> FieldTable:
    """Arguments of a quorum queue whose dead letters are not lost on the way to ``exchange``."""
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": key,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _stream(age: str) -> FieldTable:
    return {"x-queue-type": "stream", "x-max-age": age, "x-stream-max-segment-size-bytes": STREAM_SEGMENT_BYTES}
