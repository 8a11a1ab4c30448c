"""A host of the replay: a worker's real link, claim and ownership, which do their steps when they are let."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aio_pika.abc import AbstractIncomingMessage
from tests.model.gate import TIMEOUT, DisagreementError, Gate
from tests.model.state import Connection, State

from training_schemas.events import JobCancelled
from training_schemas.ledger import AttemptFailed, Cancelled, Released
from training_schemas.usage import Usage
from training_worker.broker import connection as broker
from training_worker.broker.event_publisher import EventPublisher
from training_worker.broker.names import Names
from training_worker.broker.session import Session
from training_worker.errors import BrokerError
from training_worker.ledger.job_history import ClaimRecord
from training_worker.ledger.ledger import Ledger
from training_worker.ownership.claim import Claim, NotOurs
from training_worker.ownership.ownership import Owner, Ownership
from training_worker.queue.job_message import QueuedJob

# Longer than a replay: what runs out, runs out because of the trace.
LEASE = 3600.0
GRACE = 60
POLL = 0.005

USED = Usage(gpu_seconds=1.0)


class SteppedLink(broker.Connection):
    """A link that connects when it is let."""

    may_connect: asyncio.Event

    async def _connect(self) -> Session:
        await self.may_connect.wait()
        self.may_connect.clear()
        return await super()._connect()


class Host:
    """One of the two workers. Its journal is what its run folder holds: what the attempt stands on."""

    def __init__(self, name: str, gate: Gate, url: str, names: Names, queued: QueuedJob) -> None:
        self._name = name
        self._gate = gate
        self._url = url
        self._names = names
        self._queued = queued
        self._journal: ClaimRecord | None = None
        self._begin_life()

    def _begin_life(self) -> None:
        self._link = SteppedLink(self._url, self._names, client=self._name, delays=(GRACE,))
        self._link.may_connect = asyncio.Event()
        self._running = asyncio.create_task(self._link.run())
        self._owner = Owner(
            connection=self._link,
            ledger=Ledger(self._link, clock=time.time),
            publisher=EventPublisher(self._link, self._name, simulated=True, clock=time.time),
            worker=self._name,
            lease=LEASE,
            grace=GRACE,
            clock=time.time,
        )
        self._session: Session | None = None
        self._claim: asyncio.Task[Ownership | NotOurs] | None = None
        self._ownership: Ownership | None = None
        self._hold: asyncio.Task[bool] | None = None
        self._work: tuple[str, asyncio.Task[bool]] | None = None
        self._published_end = False

    async def connect(self) -> None:
        """Have the link open a session.

        A worker that has left the job knows that it has. The model's re-attaches, as a daemon does that was
        killed before its run folder was gone: so does this one.
        """
        if self._journal is not None and self._hold is not None and self._hold.done():
            await self._drop_work()
            self._reattach(self._journal)
        self._link.may_connect.set()
        self._session = await _soon(self._link.session())

    async def begin(self, name: str) -> None:
        """Begin a list of steps; nothing, if it was begun on an earlier connection and still runs."""
        if name == "consume":
            await self._consume()
        elif self._work is None or self._work[0] != name or self._work[1].done():
            await self._drop_work()
            work: Callable[[], Awaitable[bool]] = getattr(self, f"_{name}")
            self._work = (name, asyncio.ensure_future(work()))

    async def _consume(self) -> None:
        assert self._session is not None
        channel = await self._session.channel(prefetch=1)
        queue = await channel.get_queue(
            self._names.tier_queue(self._queued.plan.family, self._queued.plan.tier), ensure=False
        )
        delivery = await _soon(_got(queue.get))
        claim = Claim(self._owner, QueuedJob.waiting(delivery), delivery, self._session, lambda _: None)
        self._claim = asyncio.ensure_future(self._make(claim, self._session))

    @staticmethod
    async def _make(claim: Claim, session: Session) -> Ownership | NotOurs:
        try:
            return await claim.make()
        except BrokerError:
            session.lost.set()  # as the slot does
            raise

    async def _renew(self) -> bool:
        return await self._mine.confirm()

    async def _finish(self) -> bool:
        ownership = self._mine
        entry = ownership.entry(Cancelled, usage=USED)
        numbers = {"job_id": entry.job_id, "attempt": entry.attempt, "sequence": 9}
        encoded = self._owner.publisher.state(
            JobCancelled, f"{entry.job_id}/{entry.attempt}/9", **numbers, step=0, usage=USED
        )
        entry = msgspec.structs.replace(entry, event=msgspec.Raw(encoded.message.body))
        if not (await ownership.report(entry) and await ownership.publish_end()):
            return False
        self._published_end = True
        return await ownership.leave()

    async def _release(self) -> bool:
        return await self._mine.give_back(self._mine.entry(Released, usage=USED), self._queued, 0)

    async def _retry_here(self) -> bool:
        failed = self._mine.entry(AttemptFailed, reason="trainerCrashed", message="", counted=True, usage=USED)
        return await self._mine.try_again(failed)

    @property
    def _mine(self) -> Ownership:
        assert self._ownership is not None
        return self._ownership

    async def step(self, step: str, before: State, after: State, me: int) -> None:
        """Do one step of a list."""
        match step:
            case _ if self._is_silent(step, _link(before, me)):
                pass
            case "make_folder":
                await self._make_folder(after.workers[me].attempt)
            case "stop_trainer":
                assert self._hold is not None
                _expect("hold", await _soon(self._hold), expected=False)
            case "remove_folder":
                await self._remove_folder()
            case "ack_older" | "ack_copies":
                await self._gate.let("ack_lease")
            case "lock" if after.workers[me].todo and after.workers[me].todo[0].__name__ == "unlock":
                await self._gate.let("lock", "read_ledger")
            case "publish_end":
                if self._claim is None:
                    await self.begin("finish")
                await self._gate.let("publish_end", "read_ledger")
            case _:
                await self._gate.let(step)

    def _is_silent(self, step: str, link: Connection) -> bool:
        """Whether the code sends nothing for a step: there is nothing to do, or nothing that it does not know."""
        match step:
            case "unlock":
                return not link.lock
            case "ack_older" | "ack_copies":
                return link.lease <= (step == "ack_older")
            case "publish_end":
                # The model's worker publishes it again on each connection, the code only while it is in doubt.
                return self._published_end
            case _:
                return step in ("await_lease", "next_attempt")

    async def _make_folder(self, attempt: int) -> None:
        if self._claim is not None:
            result = await _soon(self._claim)
            if not isinstance(result, Ownership):
                raise DisagreementError(f"the model owns the job, the claim says {result}")
            self._claim, self._ownership = None, result
            self._keep_hold()
        else:
            assert self._work is not None
            _expect("again", await _soon(self._work[1]), expected=True)
            self._work = None
        self._journal = self._mine.claim_record
        _expect("attempt", self._mine.attempt, attempt)

    def _keep_hold(self) -> None:
        self._hold = asyncio.ensure_future(self._mine.hold(lambda _: None))

    async def _remove_folder(self) -> None:
        if self._claim is not None:
            _expect("claim", await _soon(self._claim), NotOurs.FINISHED_BEFORE)
        elif self._hold is not None and self._work is not None:
            # A superseded owner's work comes to nothing.
            _expect("finalized", await _soon(self._work[1]), await _soon(self._hold))
        await self._forget()

    async def _forget(self) -> None:
        await self._drop_work()
        for task in (self._claim, self._hold):
            await _end(task)
        self._claim = self._hold = self._ownership = self._journal = None
        self._published_end = False

    async def _drop_work(self) -> None:
        if self._work is not None:
            await _end(self._work[1])
        self._work = None

    async def lose(self) -> None:
        """The connection is gone: what was not finished is resumed on the next one, a claim is not."""
        if self._session is not None:
            await _soon(self._session.lost.wait())
        self._session = None
        if self._journal is None:
            await self._forget()
        if self._work is not None and self._work[0] == "renew":
            await self._drop_work()

    async def finalize_claim(self) -> None:
        """The copy was handed over."""
        if self._claim is not None and self._claim.done() and self._claim.result() is NotOurs.HANDED_OVER:
            self._claim = None

    async def die(self, *, host: bool) -> None:
        """The daemon is gone, and with it all but the journal; the host is gone, and with it the journal."""
        journal = None if host else self._journal
        await self._forget()
        await _end(self._running)
        self._session, self._journal = None, journal

    def restart(self) -> None:
        """A daemon comes back, and re-attaches to what is in the journal."""
        self._begin_life()
        if self._journal is not None:
            self._reattach(self._journal)

    def _reattach(self, journal: ClaimRecord) -> None:
        self._published_end = False
        self._ownership = Ownership(self._owner, self._queued, journal, lambda _: None)
        self._keep_hold()


def _link(state: State, me: int) -> Connection:
    link = state.workers[me].link
    assert link is not None
    return link


def _expect(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise DisagreementError(f"{what}: the model has {expected}, the code {actual}")


async def _got(get: Callable[..., Awaitable[AbstractIncomingMessage | None]]) -> AbstractIncomingMessage:
    while (message := await get(fail=False)) is None:  # noqa: ASYNC110 - the broker does not notify
        await asyncio.sleep(POLL)
    return message


async def _soon(awaitable: Awaitable[Any]) -> Any:
    try:
        return await asyncio.wait_for(_shielded(awaitable), TIMEOUT)
    except TimeoutError:
        raise DisagreementError("the code has not come as far as the model") from None


async def _shielded(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.shield(awaitable) if isinstance(awaitable, asyncio.Future) else await awaitable


async def _end(task: asyncio.Task[Any] | None) -> None:
    """Cancel it; again, if it missed that: before Python 3.12 `wait_for` may swallow it as what it waits for ends."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
    if task is not None and not task.cancelled() and not isinstance(task.exception(), BrokerError | None):
        await task
