"""Who owns a job: the claim, the hold, the finish and the release, as small steps over lock, lease and ledger.

The order of the steps is what keeps the promise; docs/protocol.md says why each is where it is. A step that fails
leaves things as they are: the session is given up, and with it the broker frees the lock and takes back every copy.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any, TypeVar

import msgspec
import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from training_schemas.ledger import AttemptEntry, CheckpointSaved, Claimed, Released, TerminalEntry
from training_worker.broker.lease import Lease, declare_lease
from training_worker.broker.ledger import Ledger
from training_worker.broker.link import Link
from training_worker.broker.lock import Inbox, Lock
from training_worker.broker.session import Session, broker_errors
from training_worker.errors import BrokerError, JobLockedError
from training_worker.history import JobHistory
from training_worker.queued_job import QueuedJob

# How often to ask again for a lock that somebody holds who has not claimed the job: as a rule our own last
# connection, which the broker has not yet given up.
GHOST_DELAY = 1.0

log = structlog.get_logger()

E = TypeVar("E", bound=AttemptEntry)


class NotOurs(Enum):
    """Why a copy that was taken from a tier queue is not trained here. It has been settled."""

    FINISHED_BEFORE = auto()
    HANDED_OVER = auto()


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to own jobs: the broker, the name to own them under, and the lease in seconds."""

    link: Link
    ledger: Ledger
    worker: str
    lease: float
    clock: Callable[[], float]


class Grip(msgspec.Struct, frozen=True, kw_only=True):
    """What holds a job during one session."""

    session: Session
    lock: Lock
    lease: Lease


async def claim(
    owner: Owner, job: QueuedJob, delivery: AbstractIncomingMessage, session: Session, inbox: Inbox
) -> "Ownership | NotOurs":
    """Make a tier queue's delivery ours, or settle it. Raises `BrokerError`; then nothing is settled.

    The lease queue is declared side by side with the rest: that takes the broker longest, and the queue is needed
    whether the lock is won or lost.
    """
    queue, (lock, history) = await asyncio.gather(
        _declare_lease(owner, job, session), _lock_and_announce(owner, job, session, inbox)
    )
    if lock is None:
        await _hand_over(job, session, queue)
        await _settle(delivery)
        return NotOurs.HANDED_OVER
    lease = await Lease.open(session, queue)
    if history.terminal is not None:
        await _settle(delivery)
        await lease.delete()
        await lock.release()
        return NotOurs.FINISHED_BEFORE
    await lease.renew(job.message())
    await _settle(delivery)
    return Ownership(owner, job, history, inbox, Grip(session=session, lock=lock, lease=lease))


async def _lock_and_announce(
    owner: Owner, job: QueuedJob, session: Session, inbox: Inbox
) -> tuple[Lock | None, JobHistory]:
    lock = await _take_lock(owner, job, session)
    if lock is None:
        return None, JobHistory()
    # A cancellation is written into the ledger before it is sent. With the inbox open before the ledger is read, one
    # of the two reaches us.
    await lock.open_inbox(owner.link.names, inbox)
    history = await owner.ledger.read(session, job.job_id, job.submitted_at)
    if history.terminal is None:
        await _announce(owner, job, session, history.attempt + 1)
    return lock, history


async def _declare_lease(owner: Owner, job: QueuedJob, session: Session) -> AbstractQueue:
    return await declare_lease(session, owner.link.names, job.job_id, job.tier_key, owner.lease)


async def _take_lock(owner: Owner, job: QueuedJob, session: Session) -> Lock | None:
    try:
        return await Lock.take(session, owner.link.names, job.job_id)
    except JobLockedError:
        return None


async def _hand_over(job: QueuedJob, session: Session, queue: AbstractQueue) -> None:
    """Give a copy to whoever holds the lock. It is not simply dropped: should they die now, it is the last one."""
    await session.publish("", queue.name, job.message())
    await session.close_channel(queue.channel)


async def _announce(owner: Owner, job: QueuedJob, session: Session, attempt: int) -> None:
    entry = Claimed(job_id=job.job_id, attempt=attempt, worker=owner.worker, time=owner.clock())
    await owner.ledger.append_once(session, entry)


async def _settle(delivery: AbstractIncomingMessage) -> None:
    with broker_errors():
        await delivery.ack()


class Ownership:
    """One worker's ownership of one job, from the claim to its end."""

    def __init__(self, owner: Owner, job: QueuedJob, before: JobHistory, inbox: Inbox, grip: Grip) -> None:
        self._owner = owner
        self._job = job
        self._inbox = inbox
        self._grip = grip
        self._reported = False
        self._letting_go = asyncio.Event()
        self.before = before
        self.attempt = before.attempt + 1
        self.deadline = owner.clock() + owner.lease

    async def hold(self, on_renewal: Callable[[float], None]) -> bool:
        """Keep the job ours until `let_go`. False, and earlier, if another worker has it.

        ``on_renewal`` is told, after each renewal, until when the job is ours (unix seconds).
        """
        while True:
            on_renewal(self.deadline)
            await self._something_happens_within(self._owner.lease / 2)
            if self._letting_go.is_set():
                return True
            if not self._grip.session.lost.is_set():
                await self._renew()
            if self._grip.session.lost.is_set() and not await self._rejoin():
                return False

    def let_go(self) -> None:
        """End `hold` at its next step: the job is about to be settled."""
        self._letting_go.set()

    async def _something_happens_within(self, seconds: float) -> None:
        events = (self._letting_go, self._grip.session.lost)
        waits = [asyncio.create_task(event.wait(), name="hold-wait") for event in events]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _renew(self) -> None:
        now = self._owner.clock()
        try:
            await self._grip.lease.renew(self._job.message())
        except BrokerError as error:
            log.warning("lease_not_renewed", error=str(error))
            self._grip.session.lost.set()
        else:
            self.deadline = now + self._owner.lease

    async def _rejoin(self) -> bool:
        """Take the job up again on a new session, for as long as it takes. False if another worker has it."""
        while True:
            session = await self._owner.link.session()
            try:
                return await self._rejoin_on(session)
            except BrokerError as error:
                log.warning("rejoin_failed", error=str(error))
                session.lost.set()

    async def _rejoin_on(self, session: Session) -> bool:
        lock = await self._lock_unless_superseded(session)
        if lock is None:
            return False
        await lock.open_inbox(self._owner.link.names, self._inbox)
        # The lock alone proves nothing: somebody may have taken, finished and left the job meanwhile.
        if await self._superseded(session):
            await lock.release()
            return False
        now = self._owner.clock()
        lease = await Lease.open(session, await _declare_lease(self._owner, self._job, session))
        await lease.renew(self._job.message())
        self.deadline = now + self._owner.lease
        self._grip = Grip(session=session, lock=lock, lease=lease)
        log.info("rejoined", attempt=self.attempt)
        return True

    async def _lock_unless_superseded(self, session: Session) -> Lock | None:
        while True:
            if (lock := await _take_lock(self._owner, self._job, session)) is not None:
                return lock
            if await self._superseded(session):
                return None
            await asyncio.sleep(GHOST_DELAY)

    async def _superseded(self, session: Session) -> bool:
        history = await self._owner.ledger.read(session, self._job.job_id, self._job.submitted_at)
        own_end = history.terminal is not None and history.terminal.worker == self._owner.worker
        if history.attempt == self.attempt and (history.terminal is None or own_end):
            self._reported = own_end
            return False
        log.warning("superseded", attempt=self.attempt, claimed=history.attempt)
        return True

    async def checkpoint_saved(self, step: int, path: str) -> None:
        """Write into the ledger where a later attempt may go on."""
        await self._owner.ledger.append(self.entry(CheckpointSaved, step=step, path=path))

    def entry(self, kind: type[E], **fields: Any) -> E:
        """An entry for the ledger about this attempt, as of now."""
        owner = self._owner
        return kind(job_id=self._job.job_id, attempt=self.attempt, worker=owner.worker, time=owner.clock(), **fields)

    async def report(self, entry: TerminalEntry) -> bool:
        """Write the terminal entry: the job is over for everybody. False if another worker has it by now."""
        return await self._insist(lambda: self._report_once(entry))

    async def _report_once(self, entry: TerminalEntry) -> None:
        # A rejoin may have found the entry whose confirm was lost.
        if not self._reported:
            await self._owner.ledger.append_once(self._grip.session, entry)
            self._reported = True

    async def leave(self) -> bool:
        """After `report`: drop every copy and unlock. False if another worker has the job by now."""
        return await self._insist(self._leave_once)

    async def _leave_once(self) -> None:
        await self._grip.lease.delete()
        await self._grip.lock.release()

    async def release(self) -> bool:
        """Give the job back to its tier queue. False if another worker has it by now.

        Unlocked first, and only then are the copies rejected: the other way round, whoever takes a copy finds the
        lock still held, and hands it to an owner who has just left.
        """
        return await self._insist(self._release_once)

    async def _release_once(self) -> None:
        await self._owner.ledger.append_once(self._grip.session, self.entry(Released))
        await self._grip.lock.release()
        await self._grip.lease.give_back()

    async def _insist(self, once: Callable[[], Awaitable[None]]) -> bool:
        while True:
            if self._grip.session.lost.is_set() and not await self._rejoin():
                return False
            try:
                await once()
            except BrokerError as error:
                log.warning("end_not_settled", error=str(error))
                self._grip.session.lost.set()
            else:
                return True
