"""The task on taskiq with taskiq-aio-pika, whose worker acknowledges after the work and holds one message."""

from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from benchmarks.peers.submit import Submit
from benchmarks.peers.task import QUEUE, URL, work

broker = AioPikaBroker(
    URL,
    qos=1,
    exchange=Exchange(name=QUEUE),
    task_queues=[Queue(name=QUEUE)],
    dead_letter_queue=Queue(name=f"{QUEUE}.dead"),
)


async def run(child: bool) -> None:
    """Do the work in the event loop, where taskiq runs tasks that are coroutines."""
    work(child)


task = broker.task(run)


async def connect() -> Submit:
    """Open a backend's connections."""
    await broker.startup()

    async def submit(child: bool) -> None:
        await task.kiq(child)

    return submit
