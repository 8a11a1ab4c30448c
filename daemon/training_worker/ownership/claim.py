"""The claim: from a copy of a job that a tier queue delivered to the ownership of the job, in small steps.

The order of the steps makes it safe; docs/protocol.md explains why each is where it is. A step that fails changes
nothing: the session is given up, and with it the broker frees the lock and requeues every copy.
"""

import asyncio
import uuid
from enum import Enum, auto

import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from training_schemas.ledger import Claimed
from training_worker.broker.session import Session, broker_errors
from training_worker.errors import JobLockedError
from training_worker.ledger.job_history import ClaimRecord, JobHistory
from training_worker.ownership.lease import Lease, declare_lease
from training_worker.ownership.lock import Inbox, Lock
from training_worker.ownership.ownership import OwnedSession, Owner, Ownership
from training_worker.queue.job_message import QueuedJob
from training_worker.queue.rejection import refuse

log = structlog.get_logger()


class NotOurs(Enum):
    """The reasons why a copy from a tier queue is not trained here. The copy has been acknowledged."""

    FINISHED_BEFORE = auto()
    REFUSED = auto()
    HANDED_OVER = auto()


class Claim:
    """One attempt to own a job. Each step is a method; `make` runs them in order."""

    def __init__(
        self, owner: Owner, job: QueuedJob, delivery: AbstractIncomingMessage, session: Session, inbox: Inbox
    ) -> None:
        self._owner = owner
        self._job = job
        self._delivery = delivery
        self._session = session
        self._inbox = inbox
        self._name = uuid.uuid4().hex
        self._queue: AbstractQueue | None = None
        self._lock: Lock | None = None
        self._lease: Lease | None = None
        self._history = JobHistory()

    async def make(self) -> "Ownership | NotOurs":
        """Make the delivery ours, or acknowledge it. Raises `BrokerError`; then nothing is acknowledged.

        The lease queue is declared concurrently with the rest: that takes the broker longest, and the queue is needed
        whether the lock is acquired or not.
        """
        await asyncio.gather(self.declare_lease(), self._lock_and_announce())
        if self._lock is None:
            await self.hand_over()
            await self.acknowledge()
            return NotOurs.HANDED_OVER
        await self.open_lease()
        if self._is_another_job:
            await self.refuse()
            await self.acknowledge()
            await self.step_back()
            return NotOurs.REFUSED
        if self._history.terminal is not None:
            await self.publish_end()
            await self.acknowledge()
            await self.close()
            return NotOurs.FINISHED_BEFORE
        await self.lease_copy()
        await self.acknowledge()
        return self.ownership()

    async def _lock_and_announce(self) -> None:
        if await self.acquire_lock():
            await self.open_inbox()
            await self.read_ledger()
            if self._history.terminal is None and not self._is_another_job:
                await self.announce()

    @property
    def _is_another_job(self) -> bool:
        # Two intakes that read the ledger at the same moment may each have admitted a job with this id.
        return self._history.digest not in (None, self._job.digest)

    async def declare_lease(self) -> None:
        """Make sure that there is a queue for the copies that bring the job back."""
        self._queue = await declare_lease(self._session, self._owner.lease_terms(self._job))

    async def acquire_lock(self) -> bool:
        """Acquire the lock: from here on nobody else trains the job. False if somebody else holds it."""
        try:
            self._lock = await Lock.take(self._session, self._owner.connection.names, self._job.job_id)
        except JobLockedError:
            return False
        return True

    async def open_inbox(self) -> None:
        """Receive commands.

        A cancellation is written into the ledger before it is sent. With the inbox open before the ledger is read, one
        of the two reaches this worker.
        """
        assert self._lock is not None  # noqa: S101 - the step before
        await self._lock.open_inbox(self._owner.connection.names, self._inbox)

    async def read_ledger(self) -> None:
        """Read the job's history."""
        self._history = await self._owner.ledger.read(self._session, self._job.job_id, self._job.submitted_at)

    async def announce(self) -> None:
        """Record in the ledger that this attempt exists."""
        entry = Claimed(
            job_id=self._job.job_id,
            attempt=self._history.attempt + 1,
            worker=self._owner.worker,
            claim=self._name,
            time=self._owner.clock(),
        )
        await self._owner.ledger.append_once(self._session, entry)

    async def hand_over(self) -> None:
        """Hand the copy to the lock's owner. It is not dropped: should the owner die now, it is the last one."""
        assert self._queue is not None  # noqa: S101 - the step before
        await self._session.publish("", self._queue.name, self._job.message())
        await self._session.close_channel(self._queue.channel)

    async def open_lease(self) -> None:
        """Hold the existing copies."""
        assert self._queue is not None  # noqa: S101 - the step before
        self._lease = await Lease.open(self._session, self._queue)

    async def publish_end(self) -> None:
        """Publish again how the job ended: its owner may have died before it did. The event has the same id."""
        await self._owner.publish_end(self._session, self._job)

    async def refuse(self) -> None:
        """Publish that the id is another job's, which is not affected."""
        await refuse(self._job, self._job.message().body, self._owner.connection, self._owner.publisher)

    async def step_back(self) -> None:
        """Leave the copies to the job that has this id, and unlock."""
        assert self._lease is not None  # noqa: S101 - the step before
        assert self._lock is not None  # noqa: S101 - the step before
        await self._lock.release()
        await self._lease.close()

    async def lease_copy(self) -> None:
        """Hold a copy that brings the job back should this worker be gone."""
        assert self._lease is not None  # noqa: S101 - the step before
        await self._lease.renew(self._job.message())

    async def acknowledge(self) -> None:
        """Acknowledge the tier queue's delivery: from here on the lease alone brings the job back."""
        with broker_errors():
            await self._delivery.ack()

    async def close(self) -> None:
        """Drop every copy of the ended job, and unlock."""
        assert self._lease is not None  # noqa: S101 - the step before
        assert self._lock is not None  # noqa: S101 - the step before
        await self._lease.delete()
        await self._lock.release()

    def ownership(self) -> Ownership:
        """Return the ownership that the steps have led to."""
        assert self._lease is not None  # noqa: S101 - the step before
        assert self._lock is not None  # noqa: S101 - the step before
        owned_session = OwnedSession(session=self._session, lock=self._lock, lease=self._lease)
        claim_record = ClaimRecord(claim=self._name, before=self._history)
        return Ownership(self._owner, self._job, claim_record, self._inbox, owned_session)
