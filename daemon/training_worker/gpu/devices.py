"""The GPUs of this host, by NVML or simulated by the settings; which of them a daemon uses, and which together."""

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec
import structlog

from training_presets.cards import CardSpec, usd_per_hour
from training_presets.tiers import tier_of
from training_schemas.events import Gpu
from training_schemas.jobs import MemoryTier
from training_worker.errors import NoGpuError, SettingsError
from training_worker.gpu import nvml
from training_worker.gpu.nvml import SEPARATOR, DriverError, DriverHangsError, DriverMissingError, Found
from training_worker.settings import Settings

# US dollars an hour, by a GPU's name and its MiB.
Price = Callable[[str, int], float | None]

# A job's end does not wait longer for its watt-hours.
ENERGY_TIMEOUT = 3.0

log = structlog.get_logger()

STAND_IN = re.compile(r"^(?P<name>[^:]+):(?P<memory>[1-9][0-9]*)MiB\Z")


class GpuDevice(msgspec.Struct, frozen=True, kw_only=True):
    """The device that a slot trains on: one GPU, or ``count`` equal ones together.

    The memory in MiB is that of each, the price in US dollars an hour, where it is known, that of all. ``uuid`` names
    all of them, separated by commas, as CUDA_VISIBLE_DEVICES does. A GPU that the driver could not read when the worker
    started has no memory, so that nothing trains on it; ``fault`` is the reason.
    """

    uuid: str
    name: str
    memory_mib: int
    simulated: bool
    usd_per_hour: float | None
    count: int = 1
    fault: str | None = None

    @property
    def tier(self) -> MemoryTier | None:
        """The tier of the GPU; None if it is too small for any job."""
        return tier_of(self.memory_mib)

    def describe(self) -> Gpu:
        """Return the GPU as events show it."""
        return Gpu(uuid=self.uuid, name=self.name, memory_mib=self.memory_mib, tier=self.tier, count=self.count)


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a GPU that nobody uses now, in MiB; of several, the least.

    ``energy_j`` is what it has used so far, in joules since some time in the past, where it counts that.
    """

    device: GpuDevice
    free_mib: int
    energy_j: float | None = None


def find_gpus(stand_ins: list[str], prices: dict[str, float], extra: Sequence[CardSpec] = ()) -> list[GpuDevice]:
    """Find this host's GPUs, including the operator's ``extra`` kinds of them.

    The stand-ins count only if NVML shows none. Raises `NoGpuError`, `SettingsError`.
    """

    def price(name: str, memory_mib: int) -> float | None:
        return usd_per_hour(name, memory_mib, prices, extra)

    devices = _nvml_devices(price) or [_stand_in(text, number, price) for number, text in enumerate(stand_ins)]
    if not devices:
        raise NoGpuError("cannot start: NVML shows no GPU, and the settings list none under `gpus`")
    return devices


def grouped(devices: Sequence[GpuDevice], size: int) -> list[GpuDevice]:
    """Group equal GPUs, ``size`` each, in order. Raises `SettingsError` if some are left over."""
    if size == 1:
        return list(devices)
    kinds: dict[tuple[str, int], list[GpuDevice]] = {}
    for device in devices:
        if device.fault is not None:
            continue
        kinds.setdefault((device.name, device.memory_mib), []).append(device)
    for (name, _), equal in kinds.items():
        if len(equal) % size:
            raise SettingsError(f"cannot start: gpus_per_job is {size}, and {len(equal)} of {name} are not a multiple")
    return [_together(batch) for equal in kinds.values() for batch in _batches(equal, size)]


def _batches(devices: list[GpuDevice], size: int) -> Iterator[list[GpuDevice]]:
    return (devices[start : start + size] for start in range(0, len(devices), size))


def _together(devices: Sequence[GpuDevice]) -> GpuDevice:
    first, count = devices[0], len(devices)
    price = None if first.usd_per_hour is None else first.usd_per_hour * count
    uuid = SEPARATOR.join(device.uuid for device in devices)
    return msgspec.structs.replace(first, uuid=uuid, usd_per_hour=price, count=count)


def room_on(device: GpuDevice) -> Room:
    """Return how much of a GPU's memory is free; all of it, if the driver reports none. Raises `DriverHangsError`."""
    if device.simulated:
        return Room(device=device, free_mib=device.memory_mib)
    try:
        free_mib, energy_j = nvml.ask(nvml.room(device.uuid))
    except DriverHangsError:
        raise
    except DriverError as error:
        log.warning("free_memory_unknown", gpu=device.uuid, error=str(error))
        return Room(device=device, free_mib=device.memory_mib)
    return Room(device=device, free_mib=free_mib, energy_j=energy_j)


async def energy_wh_since(device: GpuDevice, before_j: float | None) -> float | None:
    """Return the watt-hours that a GPU has used since its counter was at ``before_j``; None where it has none."""
    if before_j is None:
        return None
    try:
        now_j = await nvml.ask_async(nvml.energy_j(device.uuid), ENERGY_TIMEOUT)
    except DriverError as error:
        log.warning("energy_unknown", gpu=device.uuid, error=str(error))
        return None
    # The counter restarts when the driver is loaded.
    return None if now_j is None or now_j < before_j else (now_j - before_j) / 3600


def _stand_in(text: str, number: int, price: Price) -> GpuDevice:
    match = STAND_IN.match(text)
    if match is None:
        raise SettingsError(f"cannot read settings: gpus[{number}]: expected 'NAME:MEMORYMiB', got {text!r}")
    name, memory = match["name"], int(match["memory"])
    return GpuDevice(
        uuid=f"SIMULATED-{number}",
        name=name,
        memory_mib=memory,
        simulated=True,
        usd_per_hour=price(name, memory),
    )


def _nvml_devices(price: Price) -> list[GpuDevice]:
    try:
        found = nvml.ask(nvml.find)
    except DriverMissingError:
        return []
    except DriverError as error:
        # A broken driver is no reason to train on a stand-in.
        raise NoGpuError(f"cannot start: NVML: {error}") from None
    faults = [one.fault for one in found if one.fault is not None]
    if faults and len(faults) == len(found):
        raise NoGpuError(f"cannot start: NVML: {faults[0]}")
    return [_nvml_device(one, price) for one in found]


def _nvml_device(found: Found, price: Price) -> GpuDevice:
    # A MIG instance costs its share of the GPU's price.
    whole = None if found.fault is not None else price(found.name, round(found.memory_mib / found.part))
    return GpuDevice(
        uuid=found.uuid,
        name=found.name,
        memory_mib=found.memory_mib,
        simulated=False,
        usd_per_hour=None if whole is None else whole * found.part,
        fault=found.fault,
    )


def worker_gpus(settings: Settings) -> list[GpuDevice]:
    """Return what a worker with these settings trains on, on this host: a device for each of its slots.

    Raises `NoGpuError` if there is none, and `SettingsError` if the settings do not fit this host.
    """
    found = find_gpus(settings.gpus, settings.prices, settings.cards)
    return grouped(chosen(found, settings.only_gpus), settings.gpus_per_job)


def chosen(devices: Sequence[GpuDevice], names: Sequence[str]) -> list[GpuDevice]:
    """Return the GPUs that are named, by UUID or by index in NVML's order; all, without names.

    Raises `SettingsError` if one does not exist: a daemon that is meant for it has nothing else to train on.
    """
    if not names:
        return list(devices)
    known = {str(index): device for index, device in enumerate(devices)} | {device.uuid: device for device in devices}
    for name in names:
        if name not in known:
            there = ", ".join(device.uuid for device in devices)
            raise SettingsError(f"cannot start: only_gpus names {name!r}, and this host has {there}")
    # A GPU that is named twice is one GPU; the order is the host's.
    wanted = {known[name].uuid for name in names}
    return [device for device in devices if device.uuid in wanted]
