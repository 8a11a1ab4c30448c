"""submit, watch and cancel, and what else is asked of jobs and workers."""

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
    print(f"{receipt.job_id}: {describe_estimate(receipt.estimate)}")
    if not watch:
        return 0
    return asyncio.run(_watch(receipt.job_id, receipt.submitted_at - SLACK, receipt.digest))


def watch_job(job_id: str) -> int:
    """Show a job's events of the last day until it ends. 0 if it was completed, else 1."""
    return asyncio.run(_watch(job_id, None, None))


async def _watch(job_id: str, since: float | None, digest: str | None) -> int:
    with make_view(job_id) as view:
        async for event in AsyncTrainingWorkerAPI().events(job_id, since=since, digest=digest):
            view.show(event)
    return 0 if _is_good(event) else 1


def _is_good(event: JobEvent) -> bool:
    return isinstance(event, JobCompleted) or (isinstance(event, JobDuplicate) and event.outcome == "completed")


def cancel_job(job_id: str) -> int:
    """Ask for a job's end. 0 if that changes anything, else 1."""
    answer = asyncio.run(AsyncTrainingWorkerAPI().cancel(job_id))
    print(f"{job_id}: {_described(answer)}")
    return 0 if answer.state in (CancelState.WAITING, CancelState.RUNNING, CancelState.CANCELLED) else 1


def _described(answer: CancelAnswer) -> str:
    match answer.state:
        case CancelState.WAITING:
            return "waiting; whoever takes it cancels it"
        case CancelState.RUNNING if answer.worker is not None:
            return f"running; told {answer.worker}, attempt {answer.attempt}"
        case CancelState.RUNNING:
            return "running; told its worker"
        case CancelState.UNKNOWN:
            return "unknown; nothing was written about it in the last day"
        case ended:
            return f"{ended} before; nothing to cancel"


def checkpoint_job(job_id: str) -> int:
    """Ask for a checkpoint. 0 if an owner took the command, else 1."""
    return _command_job(job_id, asyncio.run(AsyncTrainingWorkerAPI().checkpoint_now(job_id)), "a checkpoint")


def sample_job(job_id: str) -> int:
    """Ask for sample pictures. 0 if an owner took the command, else 1."""
    return _command_job(job_id, asyncio.run(AsyncTrainingWorkerAPI().sample_now(job_id)), "sample pictures")


def _command_job(job_id: str, told: bool, what: str) -> int:
    if told:
        print(f"{job_id}: asked its worker for {what}")
        return 0
    print(f"training-worker: nobody trains {job_id} now", file=sys.stderr)
    return 1


def command_worker(worker_id: str, command: str) -> int:
    """Send ``drain``, ``pause`` or ``resume`` to a worker or to all. 0 if one took it, else 1."""
    api = AsyncTrainingWorkerAPI()
    calls = {"drain": api.drain, "pause": api.pause, "resume": api.resume}
    if asyncio.run(calls[command](worker_id)):
        print(f"{worker_id}: told to {command}")
        return 0
    who = "no worker" if worker_id == ALL_WORKERS else f"no worker {worker_id}"
    print(f"training-worker: {who} is connected", file=sys.stderr)
    return 1
