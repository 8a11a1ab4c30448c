"""The actor on dramatiq, whose worker acknowledges after the work; `peer` makes it hold one message."""

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.submit import Submit
from benchmarks.peers.task import QUEUE, URL, work

dramatiq.set_broker(RabbitmqBroker(url=URL))
actor = dramatiq.actor(work, queue_name=QUEUE)


async def connect() -> Submit:
    """A backend's way to submit; dramatiq connects with the first message and stays connected."""

    async def submit(child: bool) -> None:
        actor.send(child)

    return submit
