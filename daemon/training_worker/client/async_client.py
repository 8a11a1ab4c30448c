"""The client of a backend or a dashboard. It needs the broker's address and nothing else."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from training_presets.estimates import estimate_cost
from training_presets.planner import plan_job
from training_schemas.commands import (
    CancelJob,
    CheckpointJob,
    Command,
    DrainWorker,
    PauseWorker,
    ResumeWorker,
    SampleJob,
)
from training_schemas.events import (
    TERMINAL_EVENTS,
    Event,
    JobDuplicate,
    JobEvent,
    JobRefused,
    UnknownEventError,
    decode_event,
)
from training_schemas.jobs import JOB_TYPE, TrainingJob, job_digest
from training_schemas.ledger import CancelRequested
from training_schemas.validation import UNREADABLE, decode_strictly
from training_worker.broker.names import LEDGER_KEY, SUBMIT_KEY, Names, job_key, worker_key
from training_worker.client.fleet import Workers, WorkerState
from training_worker.client.planning import Advisor
from training_worker.client.results import CancelAnswer, Receipt, cancel_answer
from training_worker.errors import BrokerError
from training_worker.queue.dead_letter import DeadLetter

if TYPE_CHECKING:
    from training_worker.broker.session import Session
    from training_worker.queue.dead_letter_queue import DeadQueue

# asyncio and the AMQP library are loaded when they are first needed, so that importing this module costs little.

# How far back a job's events are read when no one knows when it was submitted, seconds.
DEFAULT_HISTORY = 24 * 3600.0

# How far back the workers' events are read, seconds: some heartbeats of the usual interval.
WORKERS_HISTORY = 300.0
# The log is at its end where nothing more has come for this long, seconds.
QUIET = 2.0
# What has been written in a few minutes is read within this time, or the broker is in trouble, seconds.
READING_LIMIT = 60.0


class AsyncTrainingWorkerAPI(Advisor):
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
        read = decode_strictly(body, TrainingJob)
        plan = plan_job(read)
        message = persistent(body, message_id=job.job_id, type=JOB_TYPE, priority=job.priority)
        submitted_at = time.time()
        async with self._session() as session:
            await session.publish(self._names.jobs, SUBMIT_KEY, message)
        return Receipt(
            job_id=job.job_id,
            digest=job_digest(read),
            plan=plan,
            estimate=estimate_cost(plan),
            submitted_at=submitted_at,
        )

    async def cancel(self, job_id: str, *, since: float | None = None) -> CancelAnswer:
        """Cancel a job. Its owner saves a checkpoint and publishes the end; a waiting job is cancelled when claimed.

        The answer is the job's state by the ledger, from ``since`` (unix seconds) or the last day on, up to now.
        Raises `BrokerError`.
        """
        from training_worker.broker.session import persistent  # noqa: PLC0415
        from training_worker.ledger.ledger import read_history  # noqa: PLC0415

        entry = CancelRequested(job_id=job_id, time=time.time())
        command = persistent(msgspec.json.encode(CancelJob()))
        async with self._session() as session:
            # The ledger first: a worker that claims the job meanwhile sees one or the other.
            await session.publish(self._names.control, LEDGER_KEY, persistent(msgspec.json.encode(entry)))
            delivered = await session.offer(self._names.control, job_key(job_id), command)
            # The job may have ended by this very call: its state before is what counts.
            before = await read_history(session, self._names, job_id, _start(since), until=entry)
        return cancel_answer(job_id, before, delivered=delivered)

    async def checkpoint_now(self, job_id: str) -> bool:
        """Ask for a checkpoint at the next step. False if nobody trains the job now. Raises `BrokerError`."""
        return await self._send(job_key(job_id), CheckpointJob())

    async def sample_now(self, job_id: str) -> bool:
        """Ask for sample images at the next step. False if nobody trains the job now. Raises `BrokerError`."""
        return await self._send(job_key(job_id), SampleJob())

    async def drain(self, worker_id: str) -> bool:
        """Have a worker, or ``all``, finish what is running and end. False if none is there. Raises `BrokerError`."""
        return await self._send(worker_key(worker_id), DrainWorker())

    async def pause(self, worker_id: str) -> bool:
        """Have a worker, or ``all``, consume nothing until resumed. False if none is there. Raises `BrokerError`."""
        return await self._send(worker_key(worker_id), PauseWorker())

    async def resume(self, worker_id: str) -> bool:
        """Have a worker, or ``all``, consume jobs again. False if none is there. Raises `BrokerError`."""
        return await self._send(worker_key(worker_id), ResumeWorker())

    async def _send(self, key: str, command: Command) -> bool:
        from training_worker.broker.session import persistent  # noqa: PLC0415

        async with self._session() as session:
            return await session.offer(self._names.control, key, persistent(msgspec.json.encode(command)))

    async def events(
        self, job_id: str, *, since: float | None = None, digest: str | None = None
    ) -> AsyncIterator[JobEvent]:
        """Yield a job's events, from ``since`` (unix seconds) or the last day on, up to the one that ends it.

        They are replayed from the log, then live; what was published twice comes once. Events of later versions are
        ignored. The event that the job had ended before it was submitted ends them too, as does the refusal of the
        submission with this ``digest``.
        """
        from training_worker.broker.event_log import read_log  # noqa: PLC0415

        seen: set[str] = set()
        async with self._session() as session:
            async for body in read_log(session, self._names.events_log, _start(since)):
                event_id, _, event = _read_event(body)
                if isinstance(event, JobEvent) and event.job_id == job_id and event_id not in seen:
                    seen.add(event_id)
                    yield event
                    if _is_last(event, digest):
                        return

    async def wait(
        self, job_id: str, *, since: float | None = None, limit: float | None = None, digest: str | None = None
    ) -> JobEvent:
        """Wait for the last of a job's `events`, at most ``limit`` seconds. Raises `TimeoutError`, `BrokerError`."""
        import asyncio  # noqa: PLC0415

        async with asyncio.timeout(limit):
            async for event in self.events(job_id, since=since, digest=digest):
                if _is_last(event, digest):
                    return event
        raise AssertionError  # the events of a job end with such a one or not at all

    async def workers(self, *, history: float = WORKERS_HISTORY) -> list[WorkerState]:
        """Return the workers that were online within the last ``history`` seconds, by name, each by its last event.

        One that has just died is there until it has missed three heartbeats, and then ``silent``. Raises `BrokerError`.
        """
        import asyncio  # noqa: PLC0415

        workers, since = Workers(), time.time() - history
        try:
            async with asyncio.timeout(READING_LIMIT), self._session() as session:
                async for event, published_at in self._published_until_now(session, since):
                    workers.apply(event, published_at)
        except TimeoutError:
            raise BrokerError(f"cannot read {self._names.events_log}: not done after {READING_LIMIT:.0f} s") from None
        return workers.states(time.time())

    async def _published_until_now(self, session: "Session", since: float) -> AsyncIterator[tuple[Event, float]]:
        """Yield what was published since a time and before this call, each event with its time."""
        import asyncio  # noqa: PLC0415

        from training_worker.broker.event_log import read_log  # noqa: PLC0415

        now = time.time()
        bodies = read_log(session, self._names.events_log, since)
        while True:
            try:
                # The live part has no end: this reader stops at the first event of now, or at a silence.
                body = await asyncio.wait_for(anext(bodies), QUIET)
            except TimeoutError:
                return
            _, published_at, event = _read_event(body)
            if event is not None and published_at >= since:
                yield event, published_at
            if published_at > now:
                return

    async def dead_letters(self, job_id: str | None = None) -> list[DeadLetter]:
        """Return the dead-letter queue's contents, of this job or of all, oldest first. Raises `BrokerError`."""
        async with self._dead_queue() as queue:
            return [dead_letter for dead_letter in queue.dead_letters if job_id in (None, dead_letter.job_id)]

    async def requeue(self, *job_ids: str) -> list[DeadLetter]:
        """Put jobs back from the dead-letter queue: each one's newest. Raises `DeadLetterError`, `BrokerError`.

        Their attempts are counted again from none, and resume from the last checkpoint. Nothing is put back unless all
        can be.
        """
        async with self._dead_queue() as queue:
            return await queue.requeue(job_ids)

    async def drop(self, *job_ids: str) -> list[DeadLetter]:
        """Drop all dead letters of these jobs. Raises `DeadLetterError`, and then drops none; `BrokerError`."""
        async with self._dead_queue() as queue:
            return await queue.drop(job_ids)

    @asynccontextmanager
    async def _dead_queue(self) -> "AsyncIterator[DeadQueue]":
        from training_worker.queue.dead_letter_queue import opened  # noqa: PLC0415

        async with self._session() as session, opened(session, self._names) as queue:
            yield queue

    @asynccontextmanager
    async def _session(self) -> "AsyncIterator[Session]":
        from training_worker.broker.session import Session  # noqa: PLC0415

        session = await Session.open(self._url, self._names, client="training-worker client", declare=False)
        try:
            yield session
        finally:
            await session.close()


def _start(since: float | None) -> float:
    return time.time() - DEFAULT_HISTORY if since is None else since


def _is_last(event: JobEvent, digest: str | None) -> bool:
    refused = isinstance(event, JobRefused) and event.digest == digest
    return refused or isinstance(event, (*TERMINAL_EVENTS, JobDuplicate))


def _read_event(body: bytes) -> tuple[str, float, Event | None]:
    """Decode an event with its id and its time (unix seconds); None in its place if this version cannot read it."""
    try:
        envelope = decode_event(body)
        return envelope.id, envelope.time.timestamp(), envelope.read()
    except (UnknownEventError, *UNREADABLE):
        return "", 0.0, None
