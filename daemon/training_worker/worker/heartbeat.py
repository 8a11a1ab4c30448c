"""The worker's presence: what it publishes about itself, and when."""

import asyncio
import contextlib
import platform
import shutil
import socket
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from training_schemas.events import (
    CardState,
    Event,
    GpuKernels,
    Taking,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerOffline,
    WorkerOnline,
    WorkerQuarantined,
)
from training_schemas.jobs import MemoryTier, ModelFamily
from training_schemas.plans import MeasuredRate
from training_worker.attempts.step_rates import StepRates
from training_worker.broker.event_publisher import EncodedEvent, EventPublisher
from training_worker.gpu import nvml
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.monitor import Monitor
from training_worker.gpu.nvml import MIB, SEPARATOR, DriverError, Versions
from training_worker.observations import Reading
from training_worker.selftest.gpu_tests import GpuTests
from training_worker.settings import Settings
from training_worker.version import __version__

GOODBYE_TIMEOUT = 2.0

# Publishing the versions does not wait longer for the driver.
VERSIONS_TIMEOUT = 3.0


log = structlog.get_logger()


class Doing(msgspec.Struct, frozen=True):
    """The activity of a worker: the job of each slot, by the slot's GPU or GPUs, and whether it consumes more."""

    jobs: dict[str, str]
    taking: Taking


class Heartbeat:
    """Publishes that the worker is online, its state, and that it goes offline."""

    def __init__(  # noqa: PLR0913, PLR0917 - what there is to publish, each by its name
        self,
        publisher: EventPublisher,
        settings: Settings,
        devices: Sequence[GpuDevice],
        families: list[ModelFamily],
        look: Callable[[], Doing],
        rates: StepRates,
        tests: GpuTests,
    ) -> None:
        self._publisher = publisher
        self._settings = settings
        self._devices = devices
        self._families = families
        self._look = look
        self._rates = rates
        self._tests = tests
        self._published_kernels: list[GpuKernels] | None = None
        self._published_rates: list[MeasuredRate] = []
        self._waiting: asyncio.Queue[EncodedEvent] = asyncio.Queue()

    async def appear(self) -> None:
        """Publish that the worker is connected."""
        online = await self._online()
        await self._publish(WorkerOnline, **online)
        self._published_rates = online["rates"]

    async def tested(self) -> None:
        """Publish again what the worker has, if it came online before the kernels of all GPUs were known."""
        if self._published_kernels not in (None, self._tests.known):
            self._report(WorkerOnline, **await self._online())

    async def _online(self) -> dict[str, Any]:
        gpus = [device.describe() for device in self._devices]
        versions = await self._versions()
        self._published_kernels = self._tests.known
        return {
            "version": __version__,
            "gpus": gpus,
            "families": self._families,
            "host": socket.gethostname(),
            "tiers": [tier for tier in MemoryTier if tier in {gpu.tier for gpu in gpus}],
            "engines": sorted(self._settings.engines),
            "versions": versions,
            "rates": self._rates.newest(self._devices),
            "kernels": self._published_kernels,
        }

    async def beat(self, monitor: Monitor) -> None:
        """Publish the worker's state at each interval; for ever."""
        seconds = self._settings.heartbeat
        while True:
            await asyncio.sleep(seconds)
            doing = self._look()
            # A heartbeat that waited for the broker is outdated: the next one is not.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    rates = self._rates.newest(self._devices)
                    await self._publish(
                        WorkerHeartbeat,
                        version=__version__,
                        interval_seconds=seconds,
                        cards=self._card_states(monitor, doing.jobs),
                        disk_free_mib=await asyncio.to_thread(self._disk_free_mib),
                        engines=sorted(self._settings.engines),
                        host=socket.gethostname(),
                        taking=doing.taking,
                        rates=[rate for rate in rates if rate not in self._published_rates],
                    )
                    self._published_rates = rates

    def leave(self, why: str) -> None:
        """Publish that the worker consumes nothing new from now on."""
        self._report(WorkerDraining, why=why, jobs=sorted(self._look().jobs.values()))

    def quarantined(self, gpu: str, reason: str, *, recovered: bool) -> None:
        """Publish that a GPU gets no more jobs, or gets jobs again."""
        self._report(WorkerQuarantined, gpu=gpu, reason=reason, recovered=recovered)

    def _report(self, kind: type[Event], **fields: Any) -> None:
        # The caller does not wait for the broker.
        self._waiting.put_nowait(self._publisher.state(kind, str(uuid.uuid4()), **fields))

    async def report(self) -> None:
        """Publish the queued events, for ever."""
        while True:
            encoded = await self._waiting.get()
            await self._publisher.publish(encoded)
            self._waiting.task_done()

    async def goodbye(self, why: str) -> None:
        """Publish that the worker is offline; last, in a bounded time, or not at all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                await self._waiting.join()
                await self._publish(WorkerOffline, why=why)

    def _card_states(self, monitor: Monitor, jobs: dict[str, str]) -> list[CardState]:
        return [
            _card_state(
                uuid,
                device,
                jobs.get(device.uuid),
                monitor.readings.get(uuid),
                monitor.quarantined(uuid) or device.fault,
            )
            for device in self._devices
            for uuid in device.uuid.split(SEPARATOR)
        ]

    def _disk_free_mib(self) -> int | None:
        try:
            return shutil.disk_usage(self._settings.state_dir).free // MIB
        except OSError as error:
            log.warning("free_disk_unknown", error=str(error))
            return None

    async def _versions(self) -> dict[str, str]:
        driver = Versions()
        if not all(device.simulated for device in self._devices):
            with contextlib.suppress(DriverError):
                driver = await nvml.ask_async(nvml.versions, VERSIONS_TIMEOUT)
        versions = {"python": platform.python_version(), "driver": driver.driver, "cuda": driver.cuda}
        return {name: version for name, version in versions.items() if version is not None}

    async def _publish(self, kind: type[Event], **fields: Any) -> None:
        await self._publisher.publish(self._publisher.state(kind, str(uuid.uuid4()), **fields))


def _card_state(
    gpu: str, device: GpuDevice, job: str | None, reading: Reading | None, quarantined: str | None
) -> CardState:
    known = reading or Reading(uuid=gpu)
    return CardState(
        gpu=gpu,
        name=device.name,
        memory_mib=device.memory_mib,
        job=job,
        quarantined=quarantined,
        free_mib=known.free_mib,
        utilisation=known.utilisation,
        temperature_c=known.temperature_c,
        power_w=known.power_w,
    )
