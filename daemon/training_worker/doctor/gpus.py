"""The GPUs of the settings, read once for all checks: what a worker would train on, and what is wrong with it."""

import msgspec

from training_worker.errors import NoGpuError, SettingsError
from training_worker.gpu import nvml
from training_worker.gpu.devices import GpuDevice, worker_gpus
from training_worker.gpu.health import GpuHealth
from training_worker.gpu.nvml import SEPARATOR, DriverError
from training_worker.settings import Settings


class HostGpus(msgspec.Struct, frozen=True, kw_only=True):
    """A device for each slot; none, and an error, where a worker would not start.

    ``sick`` are the UUIDs of the GPUs that a worker would quarantine now, with the reason.
    """

    devices: list[GpuDevice] = []
    error: NoGpuError | SettingsError | None = None
    sick: dict[str, str] = {}


def look_at_gpus(settings: Settings) -> HostGpus:
    """Find the GPUs as a worker does, and read each of them once."""
    try:
        devices = worker_gpus(settings)
    except (NoGpuError, SettingsError) as error:
        return HostGpus(error=error)
    unreadable = {device.uuid: device.fault for device in devices if device.fault is not None}
    readable = [device for device in devices if not device.simulated and device.fault is None]
    uuids = [uuid for device in readable for uuid in device.uuid.split(SEPARATOR)]
    return HostGpus(devices=devices, sick=unreadable | (_sick(uuids, settings) if uuids else {}))


def _sick(uuids: list[str], settings: Settings) -> dict[str, str]:
    try:
        readings = nvml.ask(nvml.read(uuids), settings.driver_timeout)
    except DriverError as error:
        return dict.fromkeys(uuids, str(error))
    found = {uuid: GpuHealth(settings.hottest_card, settings.healthy_probes) for uuid in uuids}
    for uuid, health in found.items():
        health.update(readings[uuid])
    return {uuid: health.quarantined for uuid, health in found.items() if health.quarantined is not None}
