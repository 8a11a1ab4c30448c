"""The gate: a proxy in front of the broker that stops one worker's steps, each until it is let through.

A step is known by the AMQP method that does it. What the broker has given to a connection is counted on the way.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
from pamqp import commands as amqp
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader
from tests.model.state import Connection
from tests.support.frames import Frames
from yarl import URL

from training_schemas.ledger import Barrier, Claimed, EndEntry, decode_entry
from training_worker.broker.names import LEDGER_KEY, Names

TIMEOUT = 10.0
FRAME_OVERHEAD = 8
METHOD = 1

# A claim does these at once, on channels of their own: they may come in any order.
SIDE_BY_SIDE = frozenset({"declare_lease", "lock"})

ENTRIES = ((Barrier, "read_ledger"), (Claimed, "announce"), (EndEntry, "write_end"))


class DisagreementError(AssertionError):
    """The code does something else than the model, or the broker's state is another."""


class Job(msgspec.Struct, frozen=True):
    """The job whose steps are stopped."""

    names: Names
    job_id: str


class Wire:
    """One connection to the broker, and what it has of the job."""

    def __init__(self, job: Job, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self._names = job.names
        self._lease = job.names.lease(job.job_id)
        self._lock = job.names.owner(job.job_id)
        self.client = client
        self.broker = broker
        self.is_cut = False
        self.waiting: list[str] = []
        self._channels: dict[int, str] = {}
        self._held: set[tuple[int, int]] = set()
        self._locked = self._consuming = False

    @property
    def connection(self) -> Connection:
        """What the broker has given to it."""
        kinds = [self._channels.get(channel) for channel, _ in self._held]
        return Connection(
            tier=kinds.count("tier"), lease=kinds.count("lease"), lock=self._locked, consuming=self._consuming
        )

    def step(self, unit: bytes) -> str | None:
        """The step that the client does by sending this, or None."""
        if unit[0] != METHOD:
            return None
        _, channel, frame = unmarshal(unit)
        kind = self._channels.get(channel, "")
        step: str | None = None
        match frame:
            case amqp.Queue.Declare(queue=str(queue), passive=False):
                step = {self._lease: "declare_lease", self._lock: "lock"}.get(queue)
            case amqp.Queue.Delete(queue=str(queue)):
                step = {self._lease: "drop_copies", self._lock: "unlock"}.get(queue)
            case amqp.Basic.Consume(queue=self._lease):
                step = "consume_lease"
            case amqp.Basic.Cancel() if kind == "lease":
                step = "stop_consuming"
            case amqp.Basic.Ack() if kind in ("tier", "lease"):
                step = f"ack_{kind}"
            case amqp.Basic.Publish():
                step = self._publication(frame, unit)
        return step

    def _publication(self, frame: Any, unit: bytes) -> str | None:
        # What goes to the ledger by its key is an entry as well.
        if frame.exchange and frame.routing_key != LEDGER_KEY:
            return "publish_end" if frame.exchange == self._names.events else "requeue"
        if frame.routing_key == self._lease:
            return "publish_lease"
        entry = decode_entry(_body(unit))
        return next((step for kind, step in ENTRIES if isinstance(entry, kind)), None)

    def sent(self, unit: bytes) -> None:
        """Count what the client requests; the broker does it."""
        if unit[0] != METHOD:
            return
        _, channel, frame = unmarshal(unit)
        match frame:
            case amqp.Queue.Declare(queue=self._lease):
                self._channels[channel] = "lease"
            case amqp.Queue.Declare(queue=self._lock):
                self._channels[channel] = "lock"
            case amqp.Basic.Get():
                self._channels[channel] = "tier"
            case amqp.Queue.Delete(queue=self._lock):
                self._locked = False
            case amqp.Queue.Delete(queue=self._lease):
                self._let_go("lease")
            case amqp.Basic.Cancel() if self._channels.get(channel) == "lease":
                self._consuming = False
            case amqp.Basic.Ack(delivery_tag=tag):
                self._held.discard((channel, tag))
            case amqp.Channel.Close():
                self._close(channel)

    def received(self, unit: bytes) -> None:
        """Count what the broker gives."""
        if unit[0] != METHOD:
            return
        _, channel, frame = unmarshal(unit)
        match frame:
            case amqp.Queue.DeclareOk() if self._channels.get(channel) == "lock":
                self._locked = True
            case amqp.Basic.ConsumeOk() if self._channels.get(channel) == "lease":
                self._consuming = True
            case amqp.Basic.Deliver() | amqp.Basic.GetOk() if self._channels.get(channel) in ("tier", "lease"):
                self._held.add((channel, frame.delivery_tag or 0))
            case amqp.Channel.Close():
                self._close(channel)

    def _close(self, channel: int) -> None:
        if self._channels.get(channel) == "lease":
            self._consuming = False
        self._held = {one for one in self._held if one[0] != channel}
        self._channels.pop(channel, None)

    def _let_go(self, kind: str) -> None:
        self._consuming = False
        self._held = {one for one in self._held if self._channels.get(one[0]) != kind}


class Gate:
    """Stops one worker's steps. Its connection may be cut at one end alone: at the other it lives on as a ghost."""

    def __init__(self, broker_url: str) -> None:
        self._broker = URL(broker_url)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._step = ""
        self._allowed: set[str] = set()
        self._passed = False
        self.job = Job(Names(), "")
        self.wire: Wire | None = None
        self.ghost: Wire | None = None

    async def open(self) -> str:
        """Let connections come. The address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return str(self._broker.with_host("127.0.0.1").with_port(port).update_query(heartbeat=0))

    async def close(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        await self.cut(noticed=True)
        await asyncio.wait_for(asyncio.gather(*self._serving, return_exceptions=True), TIMEOUT)

    async def let(self, step: str, *also: str) -> None:
        """Let the worker do this step, and the others ``also``, until the next call; wait until it has."""
        async with self._changed:
            self._step, self._allowed, self._passed = step, {step, *also}, False
            self._changed.notify_all()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(self._arrived), TIMEOUT)
            if not self._passed:
                ready = " or ".join(self._ready) or "none"
                raise DisagreementError(f"the model's next step is {step}, the code's is {ready}")

    def _arrived(self) -> bool:
        return self._passed or not SIDE_BY_SIDE.union(self._allowed).issuperset(self._ready)

    @property
    def _ready(self) -> list[str]:
        return [] if self.wire is None else self.wire.waiting

    async def cut(self, *, noticed: bool) -> None:
        """End the connection at the worker's end, and if it is noticed at the broker's as well."""
        wire, self.wire = self.wire, None
        if wire is not None:
            self.drop_ghost()
            wire.is_cut = True
            wire.client.transport.abort()
            self.ghost = wire
        if noticed:
            self.drop_ghost()
        async with self._changed:
            self._changed.notify_all()

    def drop_ghost(self) -> None:
        """The broker notices that the connection is gone."""
        if self.ghost is not None:
            self.ghost.broker.transport.abort()
            self.ghost = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        far_reader, far_writer = await asyncio.open_connection(self._broker.host, self._broker.port)
        self.wire = wire = Wire(self.job, writer, far_writer)
        await asyncio.gather(self._send(wire, reader), self._receive(wire, far_reader))
        if self.wire is wire:
            self.wire = None

    async def _send(self, wire: Wire, reader: asyncio.StreamReader) -> None:
        async with asyncio.TaskGroup() as group:
            async for unit in _units(reader):
                step = wire.step(unit)
                if step in SIDE_BY_SIDE:
                    group.create_task(self._pass(wire, step, unit))
                else:
                    await self._pass(wire, step, unit)
        if not wire.is_cut:
            wire.broker.close()

    async def _pass(self, wire: Wire, step: str | None, unit: bytes) -> None:
        if step is not None:
            await self._arrive(wire, step)
        if not wire.is_cut:
            wire.sent(unit)
            wire.broker.write(unit)

    async def _arrive(self, wire: Wire, step: str) -> None:
        async with self._changed:
            wire.waiting.append(step)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: wire.is_cut or step in self._allowed)
            if wire.is_cut:
                return
            wire.waiting.remove(step)
            if step == self._step:
                self._passed = True
                if not step.startswith("ack"):
                    self._allowed.discard(step)
            self._changed.notify_all()

    async def _receive(self, wire: Wire, reader: asyncio.StreamReader) -> None:
        frames = Frames()
        with suppress(OSError):
            while data := await reader.read(65536):
                for frame in frames.feed(data):
                    wire.received(frame)
                    if not wire.is_cut:
                        wire.client.write(frame)
        if not wire.is_cut:
            wire.client.close()


async def _units(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What the client sends, a message with its content in one piece."""
    unit, frames = b"", Frames()
    with suppress(OSError):
        while data := await reader.read(65536):
            for frame in frames.feed(data):
                unit += frame
                if _is_whole(unit):
                    yield unit
                    unit = b""


def _is_whole(unit: bytes) -> bool:
    """A message's frames belong together."""
    if unit[0] != METHOD:
        return True
    size, _, frame = unmarshal(unit)
    if not isinstance(frame, amqp.Basic.Publish):
        return True
    if len(unit) == size:
        return False
    header, _, content = unmarshal(unit[size:])
    assert isinstance(content, ContentHeader)
    # One frame holds what is sent here.
    return not content.body_size or len(unit) >= size + header + content.body_size + FRAME_OVERHEAD


def _body(unit: bytes) -> bytes:
    size = unmarshal(unit)[0]
    size += unmarshal(unit[size:])[0]
    return unit[size + FRAME_OVERHEAD - 1 : -1]
