"""The monitor: reads the GPUs again and again, and bars the slots of unhealthy ones."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from training_worker.gpu import nvml
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.health import GpuHealth
from training_worker.gpu.nvml import SEPARATOR, DriverError
from training_worker.gpu.xid import XidWatch
from training_worker.observations import GpuRead, Observer, Reading, ServingChanged
from training_worker.settings import Settings


class Announce(Protocol):
    """Publishes that a GPU was quarantined, and why, or that it recovered. Never waits."""

    def __call__(self, gpu: str, reason: str, *, recovered: bool) -> None: ...


class Bar(Protocol):
    """The interface that keeps one slot from consuming jobs while its GPUs are unhealthy."""

    def bar(self) -> None: ...

    def unbar(self) -> None: ...


log = structlog.get_logger()

# The memory of a trainer that has just ended takes a moment to be free: a crowded GPU is read this often, with this
# many seconds in between, before the reading counts.
CROWDED_LOOKS = 5
CROWDED_PAUSE = 1.0


class Monitor:
    """Watches a worker's GPUs; simulated ones are always healthy.

    A slot whose GPU is unhealthy consumes nothing new. What it trains continues: if the GPU is lost, the trainer fails.

    Args:
        cards: what the slots train on, each with its admission.
        announce: is called with each change.
        observe: is called with each reading.
    """

    def __init__(
        self, devices: Sequence[tuple[GpuDevice, Bar]], settings: Settings, announce: Announce, observe: Observer
    ) -> None:
        self._settings = settings
        self._announce = announce
        self._observe = observe
        self._slots = [(device.uuid.split(SEPARATOR), admission) for device, admission in devices]
        watched = [(device.uuid.split(SEPARATOR), admission) for device, admission in devices if not device.simulated]
        self._health = {
            uuid: GpuHealth(settings.hottest_card, settings.healthy_probes) for uuids, _ in watched for uuid in uuids
        }
        self._condemned: dict[str, str] = {}
        for _, admission in watched:
            # Nothing is consumed before the GPU has been read.
            admission.bar()
        self._xids = XidWatch(list(self._health))
        self.readings: dict[str, Reading] = {}
        """The last reading of each GPU, by UUID; empty before the first one."""

    def quarantined(self, uuid: str) -> str | None:
        """Return why a GPU gets no jobs; None if it gets some."""
        health = self._health.get(uuid)
        sick = None if health is None else health.quarantined
        return sick or self._condemned.get(uuid)

    def condemn(self, uuid: str, reason: str) -> None:
        """Give a GPU no jobs, or several (their UUIDs separated by commas), whatever the driver reports."""
        for one in uuid.split(SEPARATOR):
            was, self._condemned[one] = self.quarantined(one), reason
            if was is None:
                self._report(one, None, reason)
        self._update_admissions()

    def absolve(self, uuid: str) -> None:
        """Take that back; a GPU that is unhealthy besides stays in quarantine."""
        for one in uuid.split(SEPARATOR):
            reason = self._condemned.pop(one, None)
            if reason is not None and self.quarantined(one) is None:
                self._report(one, reason, None)
        self._update_admissions()

    async def find_fault(self, uuid: str) -> str | None:
        """Read a GPU now, or several (their UUIDs separated by commas); return why one gets no jobs, if any."""
        watched = [one for one in uuid.split(SEPARATOR) if one in self._health]
        if watched:
            await self.check()
        return next((reason for one in watched if (reason := self.quarantined(one))), None)

    async def is_crowded(self, uuid: str, needed_mib: int) -> bool:
        """Return whether others hold so much of a GPU, or of one of several, that a job lacks the memory that it needs.

        The GPU is quarantined then.
        """
        watched = [one for one in uuid.split(SEPARATOR) if one in self._health]
        crowded: list[str] = []
        for look in range(CROWDED_LOOKS):
            await asyncio.sleep(CROWDED_PAUSE if look else 0)
            await self.check()
            free = {one: self.readings[one].free_mib for one in watched}
            crowded = [one for one, free_mib in free.items() if free_mib is not None and free_mib < needed_mib]
            if not crowded:
                return False
        for one in crowded:
            self._health[one].want(needed_mib)
        await self.check()
        return True

    async def run(self) -> None:
        """Read the GPUs at each interval, for ever; return at once where there is nothing to watch."""
        if not self._health:
            return
        self._xids.start()
        while True:
            await self.check()
            await asyncio.sleep(self._settings.card_check_interval)

    async def check(self) -> None:
        """Read the GPUs once, and act on it."""
        self.readings = await self._read()
        heard = self._xids.heard()
        for uuid, health in self._health.items():
            was = self.quarantined(uuid)
            xids = [xid for whose, xid in heard if whose == uuid]
            self._observe(GpuRead(reading=self.readings[uuid], xids=xids))
            if xids:
                log.warning("xid", gpu=uuid, xids=xids)
            health.update(self.readings[uuid], xids)
            if (was is None) is not (self.quarantined(uuid) is None):
                self._report(uuid, was, self.quarantined(uuid))
        self._update_admissions()

    async def _read(self) -> dict[str, Reading]:
        uuids = list(self._health)
        try:
            return await nvml.ask_async(nvml.read(uuids), self._settings.driver_timeout)
        except DriverError as error:
            return {uuid: Reading(uuid=uuid, fault=str(error)) for uuid in uuids}

    def _update_admissions(self) -> None:
        for uuids, admission in self._slots:
            if any(uuid in self._health and uuid not in self.readings for uuid in uuids):
                continue
            sick = any(self.quarantined(uuid) for uuid in uuids)
            admission.bar() if sick else admission.unbar()
            self._observe(ServingChanged(gpu=SEPARATOR.join(uuids), serves=not sick))

    def _report(self, uuid: str, was: str | None, now: str | None) -> None:
        if now is not None:
            log.error("card_quarantined", gpu=uuid, reason=now)
        else:
            log.info("card_recovered", gpu=uuid, reason=was)
        self._announce(uuid, now or was or "", recovered=now is None)
