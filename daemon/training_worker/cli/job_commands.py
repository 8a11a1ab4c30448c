"""The commands submit, watch and cancel, and other requests to jobs and workers."""

import asyncio
import sys
from pathlib import Path

from training_schemas.events import JobCompleted, JobDuplicate, JobEvent
from training_schemas.jobs import TrainingJob
from training_schemas.validation import decode_strictly, refused
from training_worker.broker.names import ALL_WORKERS
from training_worker.cli.job_view import describe_estimate, make_view
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.results import CancelAnswer, CancelState

# Clocks of this machine and of the broker may differ a little.
SLACK = 10.0


def read_job(file: str) -> TrainingJob:
    """Read a job from a JSON file, or from standard input for ``-``. Raises `InvalidMessageError`."""
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise refused(file, str(error.strerror)) from None
    return decode_strictly(body, TrainingJob)


def submit_file(file: str, *, watch: bool) -> int:
    """Publish a job; with ``watch``, show it to its end. Return the exit status."""
    receipt = asyncio.run(AsyncTrainingWorkerAPI().submit_job(read_job(file)))
    plan = receipt.plan
    print(f"{receipt.job_id}: submitted, {plan.training_type} with preset {plan.preset}, for GPUs of {plan.tier}")
    print(f"{receipt.job_id}: {describe_estimate(receipt.estimate)}")
    if not watch:
        return 0
    return asyncio.run(_watch(receipt.job_id, receipt.submitted_at - SLACK, receipt.digest))


def watch_job(job_id: str) -> int:
    """Show a job's events of the last day until it ends. Return 0 if it was completed, else 1."""
    return asyncio.run(_watch(job_id, None, None))


async def _watch(job_id: str, since: float | None, digest: str | None) -> int:
    with make_view(job_id) as view:
        async for event in AsyncTrainingWorkerAPI().events(job_id, since=since, digest=digest):
            view.show(event)
    return 0 if _is_good(event) else 1


def _is_good(event: JobEvent) -> bool:
    return isinstance(event, JobCompleted) or (isinstance(event, JobDuplicate) and event.outcome == "completed")


def cancel_job(job_id: str) -> int:
    """Cancel a job. Return 0 if that changes anything, else 1."""
    answer = asyncio.run(AsyncTrainingWorkerAPI().cancel(job_id))
    print(f"{job_id}: {_described(answer)}")
    return 0 if answer.state in (CancelState.WAITING, CancelState.RUNNING, CancelState.CANCELLED) else 1


def _described(answer: CancelAnswer) -> str:
    match answer.state:
        case CancelState.WAITING:
            return "waiting; the worker that claims it will cancel it"
        case CancelState.RUNNING if answer.worker is not None:
            return f"running; sent to {answer.worker}, attempt {answer.attempt}"
        case CancelState.RUNNING:
            return "running; sent to its worker"
        case CancelState.UNKNOWN:
            return "unknown; nothing was written about it in the last day"
        case ended:
            return f"{ended} before; nothing to cancel"


def checkpoint_job(job_id: str) -> int:
    """Ask for a checkpoint. Return 0 if an owner received the command, else 1."""
    return _command_job(job_id, asyncio.run(AsyncTrainingWorkerAPI().checkpoint_now(job_id)), "a checkpoint")


def sample_job(job_id: str) -> int:
    """Ask for sample images. Return 0 if an owner received the command, else 1."""
    return _command_job(job_id, asyncio.run(AsyncTrainingWorkerAPI().sample_now(job_id)), "sample images")


def _command_job(job_id: str, delivered: bool, what: str) -> int:
    if delivered:
        print(f"{job_id}: asked its worker for {what}")
        return 0
    print(f"training-worker: nobody trains {job_id} now", file=sys.stderr)
    return 1


def command_worker(worker_id: str, command: str) -> int:
    """Send ``drain``, ``pause`` or ``resume`` to a worker or to all. Return 0 if one received it, else 1."""
    api = AsyncTrainingWorkerAPI()
    calls = {"drain": api.drain, "pause": api.pause, "resume": api.resume}
    if asyncio.run(calls[command](worker_id)):
        print(f"{worker_id}: sent {command}")
        return 0
    who = "no worker" if worker_id == ALL_WORKERS else f"no worker {worker_id}"
    print(f"training-worker: {who} is connected", file=sys.stderr)
    return 1
