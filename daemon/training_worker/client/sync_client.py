"""The client for code without asyncio."""

import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from training_schemas.events import JobEvent
from training_schemas.jobs import TrainingJob
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.fleet import WorkerState
from training_worker.client.planning import Advisor
from training_worker.client.results import CancelAnswer, Receipt
from training_worker.queue.dead_letter import DeadLetter

T = TypeVar("T")


class TrainingWorkerAPI(Advisor):
    """The calls of `AsyncTrainingWorkerAPI`, each until it is done. One background thread runs those of all threads."""

    def __init__(self, amqp_url: str | None = None, *, prefix: str | None = None) -> None:
        """Talk to the broker at ``amqp_url``, else ``TRAINING_AMQP_URL``; to the fleet of ``prefix``."""
        import asyncio  # noqa: PLC0415

        self._api = AsyncTrainingWorkerAPI(amqp_url, prefix=prefix)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="training-worker-api", daemon=True).start()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        import asyncio  # noqa: PLC0415

        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit_job(self, job: TrainingJob) -> Receipt:
        """Publish a job; when this returns, the broker has it. Raises `InvalidMessageError`, `BrokerError`."""
        return self._call(self._api.submit_job(job))

    def cancel(self, job_id: str, *, since: float | None = None) -> CancelAnswer:
        """Cancel a job. Raises `BrokerError`."""
        return self._call(self._api.cancel(job_id, since=since))

    def checkpoint_now(self, job_id: str) -> bool:
        """Ask for a checkpoint. False if nobody trains the job now. Raises `BrokerError`."""
        return self._call(self._api.checkpoint_now(job_id))

    def sample_now(self, job_id: str) -> bool:
        """Ask for sample images. False if nobody trains the job now. Raises `BrokerError`."""
        return self._call(self._api.sample_now(job_id))

    def drain(self, worker_id: str) -> bool:
        """Have a worker, or ``all``, finish and end. False if none is there. Raises `BrokerError`."""
        return self._call(self._api.drain(worker_id))

    def pause(self, worker_id: str) -> bool:
        """Have a worker, or ``all``, consume nothing new. False if none is there. Raises `BrokerError`."""
        return self._call(self._api.pause(worker_id))

    def workers(self) -> list[WorkerState]:
        """Return the workers that were online within the last minutes, by name. Raises `BrokerError`."""
        return self._call(self._api.workers())

    def resume(self, worker_id: str) -> bool:
        """Have a worker, or ``all``, consume jobs again. False if none is there. Raises `BrokerError`."""
        return self._call(self._api.resume(worker_id))

    def dead_letters(self, job_id: str | None = None) -> list[DeadLetter]:
        """Return the dead-letter queue's contents, of this job or of all. Raises `BrokerError`."""
        return self._call(self._api.dead_letters(job_id))

    def requeue(self, *job_ids: str) -> list[DeadLetter]:
        """Put jobs back from the dead-letter queue. Raises `DeadLetterError`, `BrokerError`."""
        return self._call(self._api.requeue(*job_ids))

    def drop(self, *job_ids: str) -> list[DeadLetter]:
        """Drop all dead letters of these jobs. Raises `DeadLetterError`, `BrokerError`."""
        return self._call(self._api.drop(*job_ids))

    def wait(
        self, job_id: str, *, since: float | None = None, limit: float | None = None, digest: str | None = None
    ) -> JobEvent:
        """Wait for the last of a job's `events`. Raises `TimeoutError`, `BrokerError`."""
        return self._call(self._api.wait(job_id, since=since, limit=limit, digest=digest))

    def events(self, job_id: str, *, since: float | None = None, digest: str | None = None) -> Iterator[JobEvent]:
        """Yield a job's events up to the one that ends it. Raises `BrokerError`."""
        events = self._api.events(job_id, since=since, digest=digest)
        try:
            while True:
                try:
                    yield self._call(anext(events))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        finally:
            self._call(events.aclose())  # type: ignore[attr-defined]
