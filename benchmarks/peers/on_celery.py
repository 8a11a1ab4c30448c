"""The task on celery, with settings that make its worker acknowledge after the work and hold one message."""

from celery import Celery

from benchmarks.peers.submit import Submit
from benchmarks.peers.task import QUEUE, URL, work

app = Celery("peers", broker=URL)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_default_queue=QUEUE,
    control_exchange=f"{QUEUE}.control",
    event_exchange=f"{QUEUE}.events",
)
task = app.task(work)


async def connect() -> Submit:
    """A backend's way to submit; celery connects with the first task and stays connected."""

    async def submit(child: bool) -> None:
        task.delay(child)

    return submit
