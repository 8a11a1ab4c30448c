"""The world of the replay: a real broker with two hosts, and what it has of the job."""

import asyncio
import itertools
import time
from types import TracebackType
from typing import Any, Self

import msgspec
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity
from tests.model.gate import TIMEOUT, DisagreementError, Gate, Job, Wire
from tests.model.host import GRACE, POLL, Host
from tests.model.state import Connection, State
from tests.support.owning import a_queued_job

from training_schemas.events import JobCancelled, decode_event
from training_schemas.ledger import Claimed, EndEntry, JobEntry, decode_entry
from training_worker.broker.names import Names
from training_worker.broker.session import Session
from training_worker.ledger.tail import CLOCK_SLACK

FIRST = (0, 1)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of the job, as the broker or the model has it."""

    tier: int
    lease: int
    queue: bool
    locked: bool
    claimed: int
    ends: int
    published: int
    links: tuple[Connection | None, ...]
    ghosts: tuple[Connection | None, ...]


def view(state: State) -> View:
    """What the model has. A real broker gives at once whatever somebody consumes."""
    for me in FIRST:
        link, ghost = state.workers[me].link, state.workers[me].ghost
        if state.lease and link is not None and link.consuming:
            state = state.link(me, lease=link.lease + state.lease).but(lease=0)
        if state.lease and ghost is not None and ghost.consuming:
            ghost = msgspec.structs.replace(ghost, lease=ghost.lease + state.lease)
            state = state.worker(me, ghost=ghost).but(lease=0)
    return View(
        tier=state.tier,
        lease=state.lease,
        queue=state.queue,
        locked=state.locked,
        claimed=state.claimed,
        ends=state.ends,
        published=int(state.published),
        links=tuple(worker.link for worker in state.workers),
        ghosts=tuple(worker.ghost for worker in state.workers),
    )


class World:
    """A broker, and two hosts with a job, for one trace after the other: each trace has others."""

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._names = Names(prefix)
        self._numbers = itertools.count()
        self._queued = a_queued_job()
        self._entries: list[JobEntry] = []
        self._published: set[str] = set()
        self._gates: list[Gate] = []
        self._hosts: list[Host] = []

    async def __aenter__(self) -> Self:
        self._session = await Session.open(self._url, self._names, client="replay", delays=(GRACE,))
        self._probe = await self._session.channel(prefetch=0)
        await self._read(self._names.ledger, self._on_entry)
        await self._read(self._names.events_log, self._on_event)
        return self

    async def _read(self, stream: str, receive: Any) -> None:
        channel = await self._session.channel(prefetch=500)
        queue = await channel.get_queue(stream, ensure=False)
        await queue.consume(receive, arguments={"x-stream-offset": "next"})

    async def _on_entry(self, message: AbstractIncomingMessage) -> None:
        entry = decode_entry(message.body)
        if isinstance(entry, JobEntry):
            self._entries.append(entry)
        await message.ack()

    async def _on_event(self, message: AbstractIncomingMessage) -> None:
        envelope = decode_event(message.body)
        event = envelope.read()
        if isinstance(event, JobCancelled) and event.job_id == self._queued.job_id:
            self._published.add(envelope.id)
        await message.ack()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._hosts:
            await self.end()
        await self._session.close()

    async def begin(self) -> None:
        """A new job lies in its queue, and both workers are connected."""
        # A scan of the ledger begins where the job was submitted, less the slack.
        queued = a_queued_job(job_id=f"job-{next(self._numbers)}")
        self._queued = msgspec.structs.replace(queued, submitted_at=time.time() + CLOCK_SLACK)
        self._entries.clear()
        self._published.clear()
        job = Job(self._names, self._queued.job_id)
        for me in FIRST:
            gate = Gate(self._url)
            gate.job = job
            self._gates.append(gate)
            self._hosts.append(Host(f"w{me}", gate, await gate.open(), self._names, self._queued))
        await self._session.publish(self._names.jobs, self._queued.tier_key, self._queued.message())
        await asyncio.gather(*(host.connect() for host in self._hosts))
        await self._compare(State())

    async def end(self) -> None:
        """End both hosts, and leave nothing of the job."""
        for gate, host in zip(self._gates, self._hosts, strict=True):
            await gate.cut(noticed=True)
            await host.die(host=True)
            await gate.close()
        self._gates.clear()
        self._hosts.clear()
        await self._until_unlocked()
        await self._probe.queue_delete(self._names.lease(self._queued.job_id))
        await self._session.close_channel(self._probe)
        self._probe = await self._session.channel(prefetch=0)
        tier = await self._probe.get_queue(self._tier)
        await tier.purge()

    @property
    def _tier(self) -> str:
        return self._names.tier_queue(self._queued.plan.family, self._queued.plan.tier)

    async def apply(self, name: str, before: State, after: State) -> None:
        """Do what the model does, and compare. Raises `DisagreementError`."""
        number, _, step = name.partition(": ")
        if not step:
            await self._happen(name)
        else:
            me = int(number)
            await self._step(me, step, before, after)
        await self._compare(after)
        for host in self._hosts:
            await host.finalize_claim()

    async def _happen(self, name: str) -> None:
        match name:
            case "lease expires":
                await self._expire()
            case "broker restarts":
                for me in FIRST:
                    await self._cut(me, noticed=True)

    async def _step(self, me: int, step: str, before: State, after: State) -> None:
        host, gate = self._hosts[me], self._gates[me]
        was, now = before.workers[me], after.workers[me]
        match step:
            case "consume" | "renew" | "finish" | "release" | "retry_here":
                await host.begin(step)
            case "reconnect":
                await host.connect()
            case "connection is cut":
                await self._cut(me, noticed=now.ghost is None)
            case "broker gives ghost up":
                gate.drop_ghost()
            case "daemon is killed" | "host dies":
                await gate.cut(noticed=now.ghost is None)
                await host.die(host=step == "host dies")
            case "daemon restarts":
                host.restart()
            case _ if was.todo and was.todo[0].__name__ == step:
                await host.step(step, before, after, me)
                if now.link is None:
                    await host.lose()
            case _:  # the trainer's steps are the model's alone, and deliveries come by themselves
                pass

    async def _cut(self, me: int, *, noticed: bool) -> None:
        was_connected = self._gates[me].wire is not None
        await self._gates[me].cut(noticed=noticed)
        if was_connected:
            await self._hosts[me].lose()

    async def _expire(self) -> None:
        """Move a copy along the way that an expired one goes."""
        for queue in (self._names.lease(self._queued.job_id), self._names.delay_queue(GRACE)):
            copy = await self._get(queue)
            await copy.reject(requeue=False)

    async def _get(self, name: str) -> AbstractIncomingMessage:
        queue = await self._probe.get_queue(name, ensure=False)
        deadline = time.monotonic() + TIMEOUT
        while (message := await queue.get(fail=False)) is None:
            if time.monotonic() > deadline:
                raise DisagreementError(f"no copy in {name}")
            await asyncio.sleep(POLL)
        return message

    async def _compare(self, state: State) -> None:
        expected, deadline = view(state), time.monotonic() + TIMEOUT
        while (actual := await self._view()) != expected:
            if time.monotonic() > deadline:
                raise DisagreementError("\n".join(_differences(expected, actual)))
            await asyncio.sleep(POLL)

    async def _view(self) -> View:
        lease = await self._ready(self._names.lease(self._queued.job_id))
        mine = [entry for entry in self._entries if entry.job_id == self._queued.job_id]
        return View(
            tier=await self._ready(self._tier) or 0,
            lease=lease or 0,
            queue=lease is not None,
            locked=await self._locked(),
            claimed=max((entry.attempt for entry in mine if isinstance(entry, Claimed)), default=0),
            ends=sum(isinstance(entry, EndEntry) for entry in mine),
            published=len(self._published),
            links=tuple(_connection(gate.wire) for gate in self._gates),
            ghosts=tuple(_connection(gate.ghost) for gate in self._gates),
        )

    async def _ready(self, name: str) -> int | None:
        """How many copies wait in a queue; None if there is no such queue."""
        try:
            queue = await self._probe.declare_queue(name, passive=True)
        except ChannelNotFoundEntity:
            self._probe = await self._new_probe()
            return None
        return queue.declaration_result.message_count

    async def _locked(self) -> bool:
        try:
            await self._probe.declare_queue(self._names.owner(self._queued.job_id), passive=True)
        except (ChannelNotFoundEntity, ChannelLockedResource) as error:
            self._probe = await self._new_probe()
            return isinstance(error, ChannelLockedResource)
        return True

    async def _new_probe(self) -> AbstractChannel:
        return await self._session.channel(prefetch=0)

    async def _until_unlocked(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while await self._locked():
            if time.monotonic() > deadline:
                raise DisagreementError("the lock outlives its connection")
            await asyncio.sleep(POLL)


def _connection(wire: Wire | None) -> Connection | None:
    return None if wire is None else wire.connection


def _differences(expected: View, actual: View) -> list[str]:
    return [
        f"{name}: the model has {ours}, the broker {theirs}"
        for name in View.__struct_fields__
        if (ours := getattr(expected, name)) != (theirs := getattr(actual, name))
    ]
