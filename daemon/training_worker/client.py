"""The client: what a backend or a dashboard does with a fleet. Needs the broker's address and nothing else."""

import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from training_presets.planner import Plan, plan_job
from training_schemas.commands import CancelJob
from training_schemas.events import TERMINAL_EVENTS, Event, JobEvent, UnknownEventError, decode_event
from training_schemas.jobs import JOB_TYPE, TrainingJob
from training_schemas.ledger import CancelRequested
from training_schemas.validation import decode_strictly
from training_worker.broker.names import SUBMIT_KEY, Names, job_key

if TYPE_CHECKING:
    from training_worker.broker.session import Session

# asyncio and the AMQP library are loaded when they are first needed, so that importing this module costs little.

# How far back a job's events are looked for when nobody says when it was submitted, seconds.
DEFAULT_HISTORY = 24 * 3600.0

T = TypeVar("T")


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a submission is answered with: the broker has the job, and this is the plan it will be trained by."""

    job_id: str
    plan: Plan
    submitted_at: float


class AsyncTrainingWorkerAPI:
    """The asyncio client. Each call opens a connection of its own and closes it."""

    def __init__(self, amqp_url: str | None = None, *, prefix: str | None = None) -> None:
        """Talk to the broker at ``amqp_url``, else ``TRAINING_AMQP_URL``; to the fleet of ``prefix``."""
        from training_worker.settings import DEFAULT_AMQP_URL  # noqa: PLC0415

        self._url = amqp_url or os.environ.get("TRAINING_AMQP_URL") or DEFAULT_AMQP_URL
        self._names = Names(prefix or os.environ.get("TRAINING_PREFIX") or "training")

    async def submit_job(self, job: TrainingJob) -> Receipt:
        """Publish a job; when this returns, the broker has it. Raises `InvalidMessageError`, `BrokerError`."""
        from training_worker.broker.session import persistent  # noqa: PLC0415

        body = msgspec.json.encode(job)
        plan = plan_job(decode_strictly(body, TrainingJob))
        message = persistent(body, message_id=job.job_id, type=JOB_TYPE, priority=job.priority)
        submitted_at = time.time()
        async with self._session() as session:
            await session.publish(self._names.jobs, SUBMIT_KEY, message)
        return Receipt(job_id=job.job_id, plan=plan, submitted_at=submitted_at)

    async def cancel(self, job_id: str) -> None:
        """Ask for a job's end. Its owner saves a checkpoint and says so; a waiting job is cancelled when taken."""
        from training_worker.broker.session import persistent  # noqa: PLC0415

        entry = msgspec.json.encode(CancelRequested(job_id=job_id, time=time.time()))
        command = msgspec.json.encode(CancelJob())
        async with self._session() as session:
            # The ledger first: a worker that claims the job meanwhile sees one or the other.
            await session.publish("", self._names.ledger, persistent(entry))
            await session.publish(self._names.control, job_key(job_id), persistent(command), mandatory=False)

    async def events(self, job_id: str, *, since: float | None = None) -> AsyncIterator[JobEvent]:
        """A job's events, from ``since`` (unix seconds) or the last day on, up to the one that ends it.

        They are replayed from the log, then live. Events of later versions are passed over.
        """
        from training_worker.broker.log import read_log  # noqa: PLC0415

        start = time.time() - DEFAULT_HISTORY if since is None else since
        async with self._session() as session:
            async for body in read_log(session, self._names.events_log, start):
                event = _read_event(body)
                if isinstance(event, JobEvent) and event.job_id == job_id:
                    yield event
                    if isinstance(event, TERMINAL_EVENTS):
                        return

    async def wait(self, job_id: str, *, since: float | None = None, limit: float | None = None) -> JobEvent:
        """The event that ended a job, or will; at most ``limit`` seconds. Raises `TimeoutError`, `BrokerError`."""
        import asyncio  # noqa: PLC0415

        async with asyncio.timeout(limit):
            async for event in self.events(job_id, since=since):
                if isinstance(event, TERMINAL_EVENTS):
                    return event
        raise AssertionError  # the events of a job end with a terminal one or not at all

    @asynccontextmanager
    async def _session(self) -> "AsyncIterator[Session]":
        from training_worker.broker.session import Session  # noqa: PLC0415

        session = await Session.open(self._url, self._names, client="training-worker client")
        try:
            yield session
        finally:
            await session.close()


def _read_event(body: bytes) -> Event | None:
    try:
        return decode_event(body).read()
    except (UnknownEventError, msgspec.MsgspecError):
        return None


class TrainingWorkerAPI:
    """The same for code without asyncio. One background thread runs the calls of all threads."""

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

    def cancel(self, job_id: str) -> None:
        """Ask for a job's end. Raises `BrokerError`."""
        self._call(self._api.cancel(job_id))

    def wait(self, job_id: str, *, since: float | None = None, limit: float | None = None) -> JobEvent:
        """The event that ended a job, or will. Raises `TimeoutError`, `BrokerError`."""
        return self._call(self._api.wait(job_id, since=since, limit=limit))

    def events(self, job_id: str, *, since: float | None = None) -> Iterator[JobEvent]:
        """A job's events up to the one that ends it. Raises `BrokerError`."""
        events = self._api.events(job_id, since=since)
        try:
            while True:
                try:
                    yield self._call(anext(events))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        finally:
            self._call(events.aclose())  # type: ignore[attr-defined]
