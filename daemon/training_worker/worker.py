"""The worker: everything that runs in one daemon, started and ended in one place."""

import asyncio
import contextlib
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import structlog
from aio_pika.abc import AbstractIncomingMessage

from training_schemas.commands import DrainWorker, PauseWorker, ResumeWorker, decode_worker_command
from training_schemas.events import Event, WorkerOffline, WorkerOnline
from training_schemas.jobs import MemoryTier, ModelFamily, TrainingType
from training_worker.attempt import served_types
from training_worker.broker.ledger import Ledger
from training_worker.broker.link import Link
from training_worker.broker.names import Names, worker_key
from training_worker.broker.session import Session, broker_errors
from training_worker.cards import Card
from training_worker.errors import SettingsError
from training_worker.gate import Gate
from training_worker.intake import Intake
from training_worker.observations import Observer
from training_worker.owned_job import SlotContext
from training_worker.ownership import Owner
from training_worker.reporter import Speaker
from training_worker.settings import Settings
from training_worker.slot import Slot
from training_worker.version import __version__

# What may follow a trainer's grace when a worker is told to stop: saying so, giving the job back.
SETTLE_TIMEOUT = 20.0
GOODBYE_TIMEOUT = 2.0

ALL_WORKERS = "all"

log = structlog.get_logger()


def served_families(settings: Settings) -> list[ModelFamily]:
    """The families whose every training type has an engine here: a queue holds jobs of all of them."""
    types = served_types(settings)
    return [family for family in ModelFamily if all(kind in types for kind in TrainingType if kind.family is family)]


class Worker:
    """One daemon: an intake, and a slot for each card."""

    def __init__(self, settings: Settings, cards: list[Card], observe: Observer) -> None:
        self._settings = settings
        self._observe = observe
        self._cards = cards
        self._families = served_families(settings)
        self._gate = Gate()
        self._why = ""
        # No limit until told to release.
        self._limit = asyncio.Timeout(None)
        self._link = Link(settings.amqp_url, Names(settings.prefix), client=f"training-worker {settings.worker_id}")
        self._ledger = Ledger(self._link, clock=time.time)
        simulated = any(card.simulated for card in cards)
        self._speaker = Speaker(self._link, settings.worker_id, simulated=simulated, clock=time.time)
        self._intake = Intake(self._link, self._ledger, self._speaker, settings)
        self._slots = self._make_slots()

    def _make_slots(self) -> list[Slot]:
        owner = Owner(
            link=self._link,
            ledger=self._ledger,
            worker=self._settings.worker_id,
            lease=self._settings.lease,
            clock=time.time,
        )
        slots = [Slot(self._context(card, owner), card.tier) for card in self._cards if card.tier is not None]
        if not slots or not self._families:
            lowest = next(iter(MemoryTier))
            raise SettingsError(f"cannot start: no card of {lowest} or more, or no engine for a whole family of models")
        return slots

    def _context(self, card: Card, owner: Owner) -> SlotContext:
        return SlotContext(
            card=card, settings=self._settings, owner=owner, speaker=self._speaker, observe=self._observe
        )

    def drain(self, why: str) -> None:
        """Finish what is running, take nothing new, end."""
        log.info("draining", why=why)
        self._why = why
        self._gate.drain()

    def release(self, why: str) -> None:
        """Give back what is running, take nothing new, end within a bounded time."""
        log.info("releasing", why=why)
        self._why = why
        self._gate.drain()
        bound = self._settings.stop_grace + SETTLE_TIMEOUT
        self._limit.reschedule(asyncio.get_running_loop().time() + bound)
        for slot in self._slots:
            slot.release(why)

    async def run(self) -> None:
        """Work until drained or released."""
        with self._signals():
            async with asyncio.TaskGroup() as group:
                services = [
                    group.create_task(self._link.run(), name="link"),
                    group.create_task(self._ledger.follow(), name="ledger"),
                    group.create_task(self._intake.run(), name="intake"),
                    group.create_task(self._presence(), name="presence"),
                ]
                await self._run_slots()
                await self._say_goodbye()
                for service in reversed(services):
                    service.cancel()
        log.info("ended")

    async def _run_slots(self) -> None:
        try:
            async with self._limit, asyncio.TaskGroup() as group:
                for number, slot in enumerate(self._slots):
                    group.create_task(slot.run(self._gate, self._families), name=f"slot-{number}")
        except TimeoutError:
            log.warning("release_timed_out")

    async def _presence(self) -> None:
        """On each session: listen to commands, and say that this worker is here."""
        await self._link.serve(self._appear_on)

    async def _appear_on(self, session: Session) -> None:
        await self._open_inbox(session)
        gpus = [card.describe() for card in self._cards]
        await self._say(WorkerOnline, version=__version__, gpus=gpus, families=self._families)

    async def _open_inbox(self, session: Session) -> None:
        async def on_message(message: AbstractIncomingMessage) -> None:
            self._obey(message.body)

        channel = await session.channel(prefetch=0)
        await session.watch(channel)
        with broker_errors():
            queue = await channel.declare_queue(exclusive=True)
            for name in (self._settings.worker_id, ALL_WORKERS):
                await queue.bind(self._link.names.control, worker_key(name))
            await queue.consume(on_message, no_ack=True)

    def _obey(self, body: bytes) -> None:
        try:
            command = decode_worker_command(body)
        except msgspec.MsgspecError as error:
            log.warning("command_unreadable", error=str(error))
            return
        log.info("command", command=type(command).__name__)
        match command:
            case DrainWorker():
                self.drain("command")
            case PauseWorker():
                self._gate.pause()
            case ResumeWorker():
                self._gate.resume()

    async def _say_goodbye(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                await self._say(WorkerOffline, why=self._why)

    async def _say(self, kind: type[Event], **fields: Any) -> None:
        await self._speaker.publish(self._speaker.state(kind, str(uuid.uuid4()), **fields))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM releases, SIGINT drains. The second of a kind takes its default: it ends the daemon at once."""
        loop = asyncio.get_running_loop()
        actions = {signal.SIGTERM: self.release, signal.SIGINT: self.drain}

        def on_signal(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            actions[number](number.name)

        for number in actions:
            loop.add_signal_handler(number, on_signal, number)
        try:
            yield
        finally:
            for number in actions:
                loop.remove_signal_handler(number)
