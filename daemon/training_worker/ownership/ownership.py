"""Ownership of a job: held, re-attached after a lost connection, and ended, over lock, lease and ledger.

docs/protocol.md explains why each step is where it is. A step that fails gives the session up, and with it the broker
frees the lock and requeues every copy; it is then retried on the next session, if the job is still ours.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog
from aio_pika import Message

from training_schemas.commands import CancelJob
from training_schemas.ledger import AnyEntry, AttemptEntry, AttemptFailed, Claimed, Released, TerminalEntry
from training_worker.asyncio_tools import first_of
from training_worker.broker.connection import Connection
from training_worker.broker.event_publisher import EventPublisher, encoded_event
from training_worker.broker.names import delayed_key
from training_worker.broker.session import Session
from training_worker.errors import BrokerError, JobLockedError
from training_worker.ledger.job_history import ClaimRecord
from training_worker.ledger.ledger import Ledger
from training_worker.observations import LeaseChanged, LeaseEvent, Observer, unobserved
from training_worker.ownership.lease import Lease, LeaseTerms, declare_lease
from training_worker.ownership.lock import Inbox, Lock
from training_worker.queue.job_message import QueuedJob

# How often to retry a lock that somebody holds who has not claimed the job: usually our own last connection, which
# the broker has not yet given up.
GHOST_DELAY = 1.0

log = structlog.get_logger()

E = TypeVar("E", bound=AttemptEntry)


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The means of a worker to own jobs: the broker, its name, and the lease and the grace in seconds."""

    connection: Connection
    ledger: Ledger
    publisher: EventPublisher
    worker: str
    lease: float
    grace: int
    clock: Callable[[], float]
    observe: Observer = unobserved

    def lease_terms(self, job: QueuedJob) -> LeaseTerms:
        """Return how a job's copies are kept, and where they go when the lease runs out."""
        names = self.connection.names
        return LeaseTerms(
            queue=names.lease(job.job_id),
            seconds=self.lease,
            exchange=names.retry,
            key=delayed_key(self.grace, job.tier_key),
        )

    async def publish_end(self, session: Session, job: QueuedJob) -> None:
        """Publish the event of a job's end, as the ledger keeps it. Raises `BrokerError`."""
        event = await self.ledger.end_event(session, job.job_id, job.submitted_at)
        if event:
            encoded = encoded_event(event)
            await session.publish(self.connection.names.events, encoded.key, encoded.message)


class OwnedSession(msgspec.Struct, frozen=True, kw_only=True):
    """The lock and the lease that hold a job during one session."""

    session: Session
    lock: Lock
    lease: Lease


class Ownership:
    """One worker's ownership of one job, from the claim to its end. `hold` must run for the rest to work.

    Without a session at first, as after the daemon's restart, `hold` begins by re-attaching to the job.
    """

    def __init__(
        self,
        owner: Owner,
        job: QueuedJob,
        claim_record: ClaimRecord,
        inbox: Inbox,
        owned_session: OwnedSession | None = None,
    ) -> None:
        self._owner = owner
        self._job = job
        self._inbox = inbox
        self._owned_session = owned_session
        # Whichever of these the ledger names last, it is this owner's: the confirm of a claim may be lost.
        self._claims = [claim_record.claim]
        self._reported = False
        self.found_reported = False
        """Whether the end was found in the ledger, from before a lost connection or an earlier daemon."""
        self._over = asyncio.Event()
        self._superseded = False
        # Set when it is known whether a session holds the job, or that none ever will again.
        self._known = asyncio.Event()
        self._busy = asyncio.Lock()
        self.before = claim_record.before
        self.history = claim_record.before
        self.attempt = claim_record.before.attempt + 1
        self.note(self.entry(Claimed, claim=claim_record.claim))
        self.deadline = owner.clock() + owner.lease
        if owned_session is not None:
            self._known.set()

    @property
    def connection(self) -> Connection:
        """The broker."""
        return self._owner.connection

    @property
    def claim_record(self) -> ClaimRecord:
        """The claim record of the present attempt."""
        return ClaimRecord(claim=self._claims[-1], before=self.before)

    async def hold(self, on_renewal: Callable[[float], None]) -> bool:
        """Keep the job ours until it is over. False, and earlier, if another worker has it.

        ``on_renewal`` is called after each renewal with the time until which the job is ours (unix seconds).
        """
        while not self._over.is_set():
            if not await self._regain():
                return False
            on_renewal(self.deadline)
            assert self._owned_session is not None  # noqa: S101 - regained
            await first_of(self._over, self._owned_session.session.lost, timeout=self._owner.lease / 2)
            await self._renew(self._owned_session)
        return True

    async def _regain(self) -> bool:
        if self._owned_session is None or self._owned_session.session.lost.is_set():
            self._superseded = not await self._rejoin()
            self._report_lease(LeaseEvent.LOST if self._superseded else LeaseEvent.REJOINED)
            self._known.set()
        return not self._superseded

    async def _renew(self, owned_session: OwnedSession) -> None:
        async with self._busy:
            if self._over.is_set() or owned_session.session.lost.is_set():
                return
            try:
                await self._renew_once(owned_session)
            except BrokerError as error:
                log.warning("lease_not_renewed", error=str(error))
                self._report_lease(LeaseEvent.NOT_RENEWED)
                owned_session.session.lost.set()
            else:
                self._report_lease(LeaseEvent.RENEWED)

    def _report_lease(self, event: LeaseEvent) -> None:
        self._owner.observe(LeaseChanged(event=event))

    async def _renew_once(self, owned_session: OwnedSession) -> None:
        now = self._owner.clock()
        await owned_session.lease.renew(self._job.message())
        self.deadline = now + self._owner.lease

    async def _rejoin(self) -> bool:
        """Re-attach to the job on a new session, for as long as it takes. False if another worker has it."""
        while True:
            session = await self._owner.connection.session()
            try:
                return await self._rejoin_on(session)
            except BrokerError as error:
                log.warning("rejoin_failed", error=str(error))
                session.lost.set()

    async def _rejoin_on(self, session: Session) -> bool:
        lock = await self._lock_unless_superseded(session)
        if lock is None:
            return False
        await lock.open_inbox(self._owner.connection.names, self._inbox)
        # The lock alone proves nothing: another worker may have claimed, finished and left the job meanwhile.
        if await self._has_passed_on(session):
            await lock.release()
            return False
        now = self._owner.clock()
        lease = await Lease.open(session, await declare_lease(session, self._owner.lease_terms(self._job)))
        await lease.renew(self._job.message())
        self.deadline = now + self._owner.lease
        self._owned_session = OwnedSession(session=session, lock=lock, lease=lease)
        log.info("rejoined", attempt=self.attempt)
        return True

    async def _lock_unless_superseded(self, session: Session) -> Lock | None:
        while True:
            try:
                return await Lock.take(session, self._owner.connection.names, self._job.job_id)
            except JobLockedError:
                if await self._has_passed_on(session):
                    return None
            await asyncio.sleep(GHOST_DELAY)

    async def _has_passed_on(self, session: Session) -> bool:
        """Return whether another worker has the job by now, or had it."""
        history = await self._owner.ledger.read(session, self._job.job_id, self._job.submitted_at)
        if history.claim not in self._claims:
            log.warning("superseded", attempt=self.attempt, claimed=history.attempt)
            return True
        self._reported = self.found_reported = history.terminal is not None
        if history.cancel_requested:
            # The command may have been sent while no inbox was open.
            self._inbox(msgspec.json.encode(CancelJob()))
        return False

    async def publish(self, exchange: str, key: str, message: Message) -> bool:
        """Publish in the owner's name, for as long as it takes. False, and nothing, if another worker has the job."""
        return await self._with_owned_session(
            lambda owned_session: owned_session.session.publish(exchange, key, message)
        )

    def entry(self, kind: type[E], **fields: Any) -> E:
        """Return an entry for the ledger about this attempt, as of now."""
        owner = self._owner
        return kind(job_id=self._job.job_id, attempt=self.attempt, worker=owner.worker, time=owner.clock(), **fields)

    def note(self, entry: AnyEntry) -> None:
        """Note an entry of our own that the ledger has, or will have, about this job."""
        self.history = self.history.after(entry)

    async def try_again(self, failed: AttemptFailed) -> bool:
        """Record that the attempt failed, and claim the next one. False if another worker has the job by now."""
        self.note(failed)
        self.before = self.history
        self._claims.append(uuid.uuid4().hex)
        self.attempt += 1
        claimed = self.entry(Claimed, claim=self._claims[-1])
        self.note(claimed)

        async def write(owned_session: OwnedSession) -> None:
            await self._owner.ledger.append_once(owned_session.session, failed)
            await self._owner.ledger.append_once(owned_session.session, claimed)

        return await self._with_owned_session(write)

    async def confirm(self) -> bool:
        """Confirm that the job is ours for the length of a lease from now. False if another worker has it by now."""
        return await self._with_owned_session(self._renew_once)

    async def report(self, entry: TerminalEntry) -> bool:
        """Write the terminal entry: the job has ended for everybody. False if another worker has it by now."""

        async def write(owned_session: OwnedSession) -> None:
            # A rejoin may have found the entry whose confirm was lost.
            if not self._reported:
                await self._owner.ledger.append_once(owned_session.session, entry)
                self._reported = True

        return await self._with_owned_session(write)

    async def publish_end(self) -> bool:
        """Publish the event of the end as the ledger has it. False if another worker has the job by now."""
        return await self._with_owned_session(
            lambda owned_session: self._owner.publish_end(owned_session.session, self._job)
        )

    async def leave(self) -> bool:
        """After `report`: drop every copy and unlock. False if another worker has the job by now."""

        async def leave(owned_session: OwnedSession) -> None:
            await owned_session.lease.delete()
            await owned_session.lock.release()
            self._over.set()

        return await self._with_owned_session(leave)

    async def give_back(self, entry: Released | AttemptFailed, job: QueuedJob, delay: int) -> bool:
        """Return ``job`` to its tier queue, after ``delay`` seconds. False if another worker has it by now.

        First, no more copies are consumed: the next owner's own copy must not come to this one. Then the lock is
        released, and only then a copy is published and the others are dropped: otherwise, whoever gets the copy finds
        the lock still held, and hands it to an owner who has just left.
        """
        names = self._owner.connection.names
        exchange, key = (names.retry, delayed_key(delay, job.tier_key)) if delay else (names.jobs, job.tier_key)

        async def give_back(owned_session: OwnedSession) -> None:
            await self._owner.ledger.append_once(owned_session.session, entry)
            await owned_session.lease.stop_consuming()
            await owned_session.lock.release()
            await owned_session.session.publish(exchange, key, job.message())
            await owned_session.lease.drop()
            self._over.set()

        return await self._with_owned_session(give_back)

    async def _with_owned_session(self, step: Callable[[OwnedSession], Awaitable[None]]) -> bool:
        while (owned_session := await self._active_session()) is not None:
            try:
                async with self._busy:
                    await step(owned_session)
            except BrokerError as error:
                log.warning("not_settled", error=str(error))
                owned_session.session.lost.set()
            else:
                return True
        return False

    async def _active_session(self) -> OwnedSession | None:
        while True:
            await self._known.wait()
            if self._superseded:
                return None
            assert self._owned_session is not None  # noqa: S101 - known, and not superseded
            if not self._owned_session.session.lost.is_set():
                return self._owned_session
            self._known.clear()
