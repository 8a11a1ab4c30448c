"""submit, watch and cancel."""

import asyncio
import sys
from pathlib import Path

from training_schemas.events import JobCompleted
from training_schemas.jobs import TrainingJob
from training_schemas.validation import decode_strictly, refused
from training_worker.client import AsyncTrainingWorkerAPI
from training_worker.view import make_view

# Clocks of this machine and of the broker may differ a little.
SLACK = 10.0


def read_job(file: str) -> TrainingJob:
    """A job from a JSON file, or from standard input for ``-``. Raises `InvalidMessageError`."""
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise refused(file, str(error.strerror)) from None
    return decode_strictly(body, TrainingJob)


def submit_file(file: str, *, watch: bool) -> int:
    """Publish a job; with ``watch``, show it to its end. The exit status."""
    receipt = asyncio.run(AsyncTrainingWorkerAPI().submit_job(read_job(file)))
    plan = receipt.plan
    print(f"{receipt.job_id}: submitted, {plan.training_type} with preset {plan.preset}, for cards of {plan.tier}")
    return watch_job(receipt.job_id, since=receipt.submitted_at - SLACK) if watch else 0


def watch_job(job_id: str, *, since: float | None) -> int:
    """Show a job's events until it ends. 0 if it was completed, else 1."""
    return asyncio.run(_watch(job_id, since))


async def _watch(job_id: str, since: float | None) -> int:
    with make_view(job_id) as view:
        async for event in AsyncTrainingWorkerAPI().events(job_id, since=since):
            view.show(event)
    return 0 if isinstance(event, JobCompleted) else 1


def cancel_job(job_id: str) -> None:
    """Ask for a job's end."""
    asyncio.run(AsyncTrainingWorkerAPI().cancel(job_id))
    print(f"{job_id}: cancellation requested")
