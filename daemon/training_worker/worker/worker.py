"""The worker: everything that runs in one daemon, started and ended in one place."""

import asyncio
import time

import structlog

from training_schemas.events import Taking
from training_schemas.jobs import MemoryTier, ModelFamily, TrainingType
from training_worker.attempts.engine_selection import model_families, served_types
from training_worker.attempts.job_runner import SlotContext
from training_worker.attempts.step_rates import Rates
from training_worker.broker.connection import Link
from training_worker.broker.event_publisher import Speaker
from training_worker.broker.names import Names
from training_worker.broker.session import Session
from training_worker.errors import SettingsError
from training_worker.gpu.devices import Card
from training_worker.gpu.monitor import Monitor
from training_worker.ledger.ledger import Ledger
from training_worker.observations import CardFound, DiskMeasured, LoopTurned, Observer, TakingChanged
from training_worker.ownership.ownership import Owner
from training_worker.queue.admission import Gate
from training_worker.queue.intake import Intake
from training_worker.runs.run import Run, find_runs
from training_worker.runs.standby import Standby
from training_worker.settings import Settings
from training_worker.storage.disk_usage import DAY
from training_worker.storage.reservations import Reservations
from training_worker.worker.commands import open_inbox
from training_worker.worker.heartbeat import Doing, Presence
from training_worker.worker.instance_lock import only_daemon
from training_worker.worker.signals import handled_signals
from training_worker.worker.slot import Slot
from training_worker.worker.stages import Ending, Stage
from training_worker.worker.systemd_notify import Condition, Notifier, keep_telling

# What may follow a trainer's grace when a worker is told to stop: saying so, giving the job back.
SETTLE_TIMEOUT = 20.0
ABORT_TIMEOUT = 5.0

# How often it is looked what holds the disk: folders are walked for that (seconds).
DISK_INTERVAL = 600.0

# How often it is told that the loop turns (seconds).
PULSE = 1.0

log = structlog.get_logger()


def served_families(settings: Settings) -> list[ModelFamily]:
    """The families that have a model here, and of which all types are served: a queue holds jobs of all of them."""
    types, models = served_types(settings), model_families(settings)
    return [
        family
        for family in ModelFamily
        if family in models and types.issuperset(kind for kind in TrainingType if kind.family is family)
    ]


class Worker:
    """One daemon: an intake, and a slot for each card."""

    def __init__(
        self, settings: Settings, cards: list[Card], observe: Observer, notifier: Notifier | None = None
    ) -> None:
        self._settings = settings
        self._notifier = notifier or Notifier({})
        self._tasks: list[asyncio.Task[None]] = []
        self._observe = observe
        self._cards = cards
        self._families = served_families(settings)
        self._gate = Gate()
        self.stage = Stage.WORKING
        self.ending = Ending.DONE
        self._why = ""
        # No limit until told to release.
        self._limit = asyncio.Timeout(None)
        self._link = Link(
            settings.amqp_url,
            Names(settings.prefix),
            client=f"training-worker {settings.worker_id}",
            delays=[settings.grace, *settings.retry_delays],
            observe=observe,
        )
        self._ledger = Ledger(self._link, clock=time.time)
        simulated = any(card.simulated for card in cards)
        self._speaker = Speaker(self._link, settings.worker_id, simulated=simulated, clock=time.time)
        self._intake = Intake(self._link, self._ledger, self._speaker, settings)
        self._rates = Rates(settings.state_dir)
        self._reservations = Reservations(settings)
        self._slots = self._make_slots()
        self._presence = Presence(self._speaker, settings, cards, self._families, self._doing, self._rates)
        self._gates = {uuid: self._gate.inner() for uuid in self._slots}
        watched = [(card, self._gates[card.uuid]) for card in cards if card.uuid in self._gates]
        self._monitor = Monitor(watched, settings, self._presence.quarantined, observe)

    def _doing(self) -> Doing:
        jobs = {name: slot.job_id for name, slot in self._slots.items() if slot.job_id is not None}
        return Doing(jobs, self._taking())

    def _make_slots(self) -> dict[str, Slot]:
        for card in self._cards:
            if card.fault is not None:
                log.error("card_unreadable", gpu=card.uuid, error=card.fault)
        self._owner = owner = Owner(
            link=self._link,
            ledger=self._ledger,
            speaker=self._speaker,
            worker=self._settings.worker_id,
            lease=self._settings.lease,
            grace=self._settings.grace,
            clock=time.time,
            observe=self._observe,
        )
        slots = {
            card.uuid: Slot(self._context(card, owner), card.tier) for card in self._cards if card.tier is not None
        }
        if not slots or not self._families:
            lowest = next(iter(MemoryTier))
            raise SettingsError(f"cannot start: no card of {lowest} or more, or no engine for a whole family of models")
        return slots

    def _context(self, card: Card, owner: Owner) -> SlotContext:
        return SlotContext(
            card=card,
            settings=self._settings,
            owner=owner,
            speaker=self._speaker,
            observe=self._observe,
            rates=self._rates,
            standby=Standby(card, self._settings),
            reservations=self._reservations,
            find_fault=self._find_fault,
            is_crowded=self._is_crowded,
        )

    async def _find_fault(self, uuid: str) -> str | None:
        return await self._monitor.find_fault(uuid)

    async def _is_crowded(self, uuid: str, needed_mib: int) -> bool:
        return await self._monitor.is_crowded(uuid, needed_mib)

    def drain(self, why: str) -> None:
        """Finish what is running, take nothing new, end."""
        self._leave(Stage.DRAINING, why)
        self._presence.leave(why)

    def release(self, why: str) -> None:
        """Give back what is running, take nothing new, end within a bounded time."""
        self._leave(Stage.RELEASING, why)
        self._presence.leave(why)
        self._end_within(self._settings.stop_grace + SETTLE_TIMEOUT)
        for slot in self._slots.values():
            slot.release(why)

    def abort(self, why: str) -> None:
        """Give back what is running without waiting for a checkpoint, and end at once."""
        self._leave(Stage.ABORTING, why)
        self.ending = Ending.ABORTED
        self._end_within(ABORT_TIMEOUT)
        for slot in self._slots.values():
            slot.abort()

    def replace(self) -> None:
        """End, and leave what is running to the program that takes this one's place."""
        self._leave(Stage.DRAINING, "SIGHUP")
        self.ending = Ending.REPLACED
        self._notifier.reloading()
        self._end_within(SETTLE_TIMEOUT)
        for slot in self._slots.values():
            slot.detach()

    def _leave(self, stage: Stage, why: str) -> None:
        log.info("leaving", stage=stage.name.lower(), why=why)
        self.stage = max(self.stage, stage)
        self._why = why
        self._gate.drain()
        # Not for a drain: from STOPPING=1 on systemd counts the stop time, and a drain takes as long as its jobs.
        if stage >= Stage.RELEASING:
            self._notifier.stopping(self._condition().status)
        self._observe(TakingChanged(taking=Taking.DRAINING))

    def _end_within(self, seconds: float) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + seconds)

    async def run(self) -> Ending:
        """Work until told to leave."""
        with only_daemon(self._settings.state_dir), handled_signals(self):
            async with asyncio.TaskGroup() as group:
                services = [
                    group.create_task(self._link.run(), name="link"),
                    group.create_task(self._ledger.follow(), name="ledger"),
                    group.create_task(self._intake.run(), name="intake"),
                    group.create_task(self._link.serve(self._appear_on), name="presence"),
                    group.create_task(self._monitor.run(), name="monitor"),
                    group.create_task(self._presence.beat(self._monitor), name="heartbeat"),
                    group.create_task(self._presence.tell(), name="telling"),
                    group.create_task(keep_telling(self._notifier, self._condition), name="notify"),
                    group.create_task(self._pulse(), name="pulse"),
                    group.create_task(self._keep_clean(), name="cleaning"),
                ]
                self._tasks.append(services[0])
                await self._run_slots()
                if self.ending is not Ending.REPLACED:
                    self._notifier.stopping("ending")
                    await self._presence.goodbye(self._why)
                for service in reversed(services):
                    service.cancel()
            if self.ending is Ending.REPLACED:
                # Signals are blocked in this thread alone: no other one may take them on the way to the next program.
                await asyncio.get_running_loop().shutdown_default_executor()
        log.info("ended", how=self.ending.name.lower())
        return self.ending

    async def _pulse(self) -> None:
        """Tell what cards there are, and again and again that the loop turns."""
        for card in self._cards:
            if card.tier is not None:
                self._observe(CardFound(card=card.describe(), simulated=card.simulated))
        while True:
            self._observe(LoopTurned())
            await asyncio.sleep(PULSE)

    async def _keep_clean(self) -> None:
        """Clean at the start and daily, and tell in between what the disk holds."""
        cleaning = self._reservations.cleaning
        while True:
            try:
                await asyncio.to_thread(cleaning.clean)
            except OSError as error:
                log.warning("not_cleaned", error=str(error))
            for _ in range(round(DAY / DISK_INTERVAL)):
                self._observe(DiskMeasured(use=await asyncio.to_thread(cleaning.use)))
                await asyncio.sleep(DISK_INTERVAL)

    async def _run_slots(self) -> None:
        runs = await asyncio.to_thread(find_runs, self._settings.state_dir)
        for slot, run in [(self._slot_for(run), run) for run in runs]:
            await asyncio.to_thread(slot.expect, run)
        try:
            async with self._limit, asyncio.TaskGroup() as group:
                for uuid in self._gates:
                    self._tasks.append(group.create_task(self._run_slot(uuid), name=f"slot-{uuid}"))
                for name in self._slots.keys() - self._gates.keys():
                    group.create_task(self._slots[name].take_up(), name=name)
        except TimeoutError:
            log.warning("leaving_timed_out")

    async def _run_slot(self, uuid: str) -> None:
        slot = self._slots[uuid]
        await slot.take_up()
        await slot.run(self._gates[uuid], self._families)

    def _slot_for(self, run: Run) -> Slot:
        """The slot of the run's card; one of its own if the worker has none for it any more."""
        uuid = run.record.card.uuid
        if uuid in self._gates:
            return self._slots[uuid]
        slot = Slot(self._context(run.record.card, self._owner), MemoryTier.GB8)
        self._slots[f"stray-{run.folder.path.name}"] = slot
        return slot

    def _condition(self) -> Condition:
        """Healthy: the link's task and each slot's are alive. A slot's ends when the worker leaves, not before."""
        broker = "connected" if self._link.connected else "not connected to the broker"
        stage = "" if self.stage is Stage.WORKING else f", {self.stage.name.lower()}"
        jobs = [f"{slot.job_id} on {name}" for name, slot in self._slots.items() if slot.job_id is not None]
        doing = f"training {', '.join(jobs)}" if jobs else f"no job on {len(self._slots)} card(s)"
        healthy = self.stage is not Stage.WORKING or not any(task.done() for task in self._tasks)
        return Condition(healthy=healthy, status=f"{broker}{stage}; {doing}")

    async def _appear_on(self, session: Session) -> None:
        """On each session: listen to commands, and say that this worker is here."""
        await open_inbox(session, self._link.names.control, self._settings.worker_id, self)
        await self._presence.appear()

    def pause(self) -> None:
        """Take nothing new until resumed."""
        self._gate.pause()
        self._tell_taking()

    def resume(self) -> None:
        """Take jobs again."""
        self._gate.resume()
        self._tell_taking()

    def _tell_taking(self) -> None:
        self._observe(TakingChanged(taking=self._taking()))

    def _taking(self) -> Taking:
        closed = Taking.DRAINING if self._gate.drained else Taking.PAUSED
        return closed if self._gate.closed else Taking.OPEN
