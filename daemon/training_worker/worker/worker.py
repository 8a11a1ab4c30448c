"""The worker: everything that runs in one daemon, started and ended in one place."""

import asyncio
import time

import structlog

from training_schemas.events import Taking
from training_schemas.jobs import MemoryTier, ModelFamily, TrainingType
from training_worker.attempts.engine_selection import model_families, served_types
from training_worker.attempts.job_runner import SlotContext
from training_worker.attempts.step_rates import StepRates
from training_worker.broker.connection import Connection
from training_worker.broker.event_publisher import EventPublisher
from training_worker.broker.names import Names
from training_worker.broker.session import Session
from training_worker.errors import SettingsError
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.monitor import Monitor
from training_worker.ledger.ledger import Ledger
from training_worker.observations import AdmissionChanged, DiskMeasured, GpuFound, LoopTurned, Observer
from training_worker.ownership.ownership import Owner
from training_worker.queue.admission import Admission
from training_worker.queue.intake import Intake
from training_worker.runs.run import Run, find_runs
from training_worker.runs.standby import Standby
from training_worker.selftest.gpu_tests import GpuTests
from training_worker.settings import Settings
from training_worker.storage.disk_usage import DAY
from training_worker.storage.reservations import Reservations
from training_worker.worker.commands import open_inbox
from training_worker.worker.heartbeat import Doing, Heartbeat
from training_worker.worker.instance_lock import only_daemon
from training_worker.worker.kernel_gate import KernelGate
from training_worker.worker.signals import handled_signals
from training_worker.worker.slot import Slot
from training_worker.worker.stages import Ending, Stage
from training_worker.worker.systemd_notify import Condition, Notifier, keep_notifying

# The time after a trainer's grace when a worker releases its jobs: to publish that, and to return the jobs.
COMPLETION_TIMEOUT = 20.0
ABORT_TIMEOUT = 5.0

# How often disk usage is measured: folders are walked for that (seconds).
DISK_INTERVAL = 600.0

# How often the event loop reports that it runs (seconds).
PULSE = 1.0

log = structlog.get_logger()


def served_families(settings: Settings) -> list[ModelFamily]:
    """Return the families that have a model here, and of which all types are served: a queue holds jobs of all."""
    types, models = served_types(settings), model_families(settings)
    return [
        family
        for family in ModelFamily
        if family in models and types.issuperset(kind for kind in TrainingType if kind.family is family)
    ]


class Worker:
    """One daemon: an intake, and a slot for each GPU."""

    def __init__(
        self,
        settings: Settings,
        devices: list[GpuDevice],
        observe: Observer,
        notifier: Notifier | None = None,
        tests: GpuTests | None = None,
    ) -> None:
        self._settings = settings
        self._notifier = notifier or Notifier({})
        self._tasks: list[asyncio.Task[None]] = []
        self._observe = observe
        self._devices = devices
        self._families = served_families(settings)
        self._admission = Admission()
        self.stage = Stage.WORKING
        self.ending = Ending.DONE
        self._why = ""
        # No limit before a release.
        self._limit = asyncio.Timeout(None)
        self._connection = Connection(
            settings.amqp_url,
            Names(settings.prefix),
            client=f"training-worker {settings.worker_id}",
            delays=[settings.grace, *settings.retry_delays],
            observe=observe,
        )
        self._ledger = Ledger(self._connection, clock=time.time)
        simulated = any(device.simulated for device in devices)
        self._publisher = EventPublisher(self._connection, settings.worker_id, simulated=simulated, clock=time.time)
        self._intake = Intake(self._connection, self._ledger, self._publisher, settings)
        self._rates = StepRates(settings.state_dir)
        self._reservations = Reservations(settings)
        self._slots = self._make_slots()
        self._tests = tests or GpuTests(settings, observe)
        self._heartbeat = Heartbeat(
            self._publisher, settings, devices, self._families, self._doing, self._rates, self._tests
        )
        self._admissions = {uuid: self._admission.inner() for uuid in self._slots}
        watched = [(device, self._admissions[device.uuid]) for device in devices if device.uuid in self._admissions]
        self._monitor = Monitor(watched, settings, self._heartbeat.quarantined, observe)
        self._kernel_gate = KernelGate(self._tests, self._monitor, self._heartbeat)

    def _doing(self) -> Doing:
        jobs = {name: slot.job_id for name, slot in self._slots.items() if slot.job_id is not None}
        return Doing(jobs, self._taking())

    def _make_slots(self) -> dict[str, Slot]:
        for device in self._devices:
            if device.fault is not None:
                log.error("card_unreadable", gpu=device.uuid, error=device.fault)
        self._owner = owner = Owner(
            connection=self._connection,
            ledger=self._ledger,
            publisher=self._publisher,
            worker=self._settings.worker_id,
            lease=self._settings.lease,
            grace=self._settings.grace,
            clock=time.time,
            observe=self._observe,
        )
        slots = {
            device.uuid: Slot(self._context(device, owner), device.tier)
            for device in self._devices
            if device.tier is not None
        }
        if not slots or not self._families:
            lowest = next(iter(MemoryTier))
            raise SettingsError(f"cannot start: no GPU of {lowest} or more, or no engine for a whole family of models")
        return slots

    def _context(self, device: GpuDevice, owner: Owner) -> SlotContext:
        return SlotContext(
            device=device,
            settings=self._settings,
            owner=owner,
            publisher=self._publisher,
            observe=self._observe,
            rates=self._rates,
            standby=Standby(device, self._settings),
            reservations=self._reservations,
            find_fault=self._find_fault,
            is_crowded=self._is_crowded,
        )

    async def _find_fault(self, uuid: str) -> str | None:
        return await self._monitor.find_fault(uuid)

    async def _is_crowded(self, uuid: str, needed_mib: int) -> bool:
        return await self._monitor.is_crowded(uuid, needed_mib)

    def drain(self, why: str) -> None:
        """Finish what is running, consume nothing new, end."""
        self._leave(Stage.DRAINING, why)
        self._heartbeat.leave(why)

    def release(self, why: str) -> None:
        """Release what is running, consume nothing new, end within a bounded time."""
        self._leave(Stage.RELEASING, why)
        self._heartbeat.leave(why)
        self._end_within(self._settings.stop_grace + COMPLETION_TIMEOUT)
        for slot in self._slots.values():
            slot.release(why)

    def abort(self, why: str) -> None:
        """Release what is running without waiting for a checkpoint, and end at once."""
        self._leave(Stage.ABORTING, why)
        self.ending = Ending.ABORTED
        self._end_within(ABORT_TIMEOUT)
        for slot in self._slots.values():
            slot.abort()

    def replace(self) -> None:
        """End, and leave what is running to the program that replaces this one."""
        self._leave(Stage.DRAINING, "SIGHUP")
        self.ending = Ending.REPLACED
        self._notifier.reloading()
        self._end_within(COMPLETION_TIMEOUT)
        for slot in self._slots.values():
            slot.detach()

    def _leave(self, stage: Stage, why: str) -> None:
        log.info("leaving", stage=stage.name.lower(), why=why)
        self.stage = max(self.stage, stage)
        self._why = why
        self._kernel_gate.leave()
        self._admission.drain()
        # Not for a drain: from STOPPING=1 on systemd counts the stop time, and a drain takes as long as its jobs.
        if stage >= Stage.RELEASING:
            self._notifier.stopping(self._condition().status)
        self._observe(AdmissionChanged(taking=Taking.DRAINING))

    def _end_within(self, seconds: float) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + seconds)

    async def run(self) -> Ending:
        """Work until ordered to end."""
        with only_daemon(self._settings.state_dir), handled_signals(self):
            async with asyncio.TaskGroup() as group:
                services = [
                    group.create_task(self._connection.run(), name="link"),
                    group.create_task(self._ledger.follow(), name="ledger"),
                    group.create_task(self._intake.run(), name="intake"),
                    group.create_task(self._connection.serve(self._appear_on), name="presence"),
                    group.create_task(self._monitor.run(), name="monitor"),
                    group.create_task(self._heartbeat.beat(self._monitor), name="heartbeat"),
                    group.create_task(self._heartbeat.report(), name="worker-events"),
                    group.create_task(keep_notifying(self._notifier, self._condition), name="notify"),
                    group.create_task(self._pulse(), name="pulse"),
                    group.create_task(self._keep_clean(), name="cleaning"),
                ]
                self._tasks.append(services[0])
                await self._run_slots()
                if self.ending is not Ending.REPLACED:
                    self._notifier.stopping("ending")
                    await self._heartbeat.goodbye(self._why)
                for service in reversed(services):
                    service.cancel()
            if self.ending is Ending.REPLACED:
                # Signals are blocked in this thread alone: no other one may receive them before the next program.
                await asyncio.get_running_loop().shutdown_default_executor()
        log.info("ended", how=self.ending.name.lower())
        return self.ending

    async def _pulse(self) -> None:
        """Report the GPUs, and then again and again that the event loop runs."""
        for device in self._devices:
            if device.tier is not None:
                self._observe(GpuFound(device=device.describe(), simulated=device.simulated))
        while True:
            self._observe(LoopTurned())
            await asyncio.sleep(PULSE)

    async def _keep_clean(self) -> None:
        """Clean at the start and daily, and report in between what the disk holds."""
        cleanup = self._reservations.cleanup
        while True:
            try:
                await asyncio.to_thread(cleanup.clean)
            except OSError as error:
                log.warning("not_cleaned", error=str(error))
            for _ in range(round(DAY / DISK_INTERVAL)):
                self._observe(DiskMeasured(use=await asyncio.to_thread(cleanup.use)))
                await asyncio.sleep(DISK_INTERVAL)

    async def _run_slots(self) -> None:
        runs = await asyncio.to_thread(find_runs, self._settings.state_dir)
        for slot, run in [(self._slot_for(run), run) for run in runs]:
            await asyncio.to_thread(slot.expect, run)
        try:
            async with self._limit, asyncio.TaskGroup() as group:
                for uuid in self._admissions:
                    self._tasks.append(group.create_task(self._run_slot(uuid), name=f"slot-{uuid}"))
                for name in self._slots.keys() - self._admissions.keys():
                    group.create_task(self._slots[name].reattach(), name=name)
        except TimeoutError:
            log.warning("leaving_timed_out")

    async def _run_slot(self, uuid: str) -> None:
        slot = self._slots[uuid]
        device = next(device for device in self._devices if device.uuid == uuid)
        if await self._kernel_gate.passed(device, slot.reattach()):
            await slot.run(self._admissions[uuid], self._families)

    def _slot_for(self, run: Run) -> Slot:
        """Return the slot of the run's GPU; a new one for the run if the worker has none for it any more."""
        uuid = run.record.device.uuid
        if uuid in self._admissions:
            return self._slots[uuid]
        slot = Slot(self._context(run.record.device, self._owner), MemoryTier.GB8)
        self._slots[f"stray-{run.folder.path.name}"] = slot
        return slot

    def _condition(self) -> Condition:
        """Check the health: the connection's task and each slot's must run. A slot's ends only when the worker does."""
        broker = "connected" if self._connection.connected else "not connected to the broker"
        stage = "" if self.stage is Stage.WORKING else f", {self.stage.name.lower()}"
        jobs = [f"{slot.job_id} on {name}" for name, slot in self._slots.items() if slot.job_id is not None]
        doing = f"training {', '.join(jobs)}" if jobs else f"no job on {len(self._slots)} GPU(s)"
        healthy = self.stage is not Stage.WORKING or not any(task.done() for task in self._tasks)
        return Condition(healthy=healthy, status=f"{broker}{stage}; {doing}")

    async def _appear_on(self, session: Session) -> None:
        """Set up a session: open the inbox for commands, and publish that this worker is online."""
        await open_inbox(session, self._connection.names.control, self._settings.worker_id, self)
        await self._heartbeat.appear()

    def pause(self) -> None:
        """Consume nothing new until resumed."""
        self._admission.pause()
        self._report_admission()

    def resume(self) -> None:
        """Consume jobs again."""
        self._admission.resume()
        self._report_admission()

    def _report_admission(self) -> None:
        self._observe(AdmissionChanged(taking=self._taking()))

    def _taking(self) -> Taking:
        closed = Taking.DRAINING if self._admission.drained else Taking.PAUSED
        return closed if self._admission.closed else Taking.OPEN
