"""NVML, asked in one place: from a thread of its own and with a time limit, so that a hung driver hangs nobody else."""

import asyncio
import queue
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import msgspec

from training_worker.errors import TrainingWorkerError

MIB = 1024 * 1024
T = TypeVar("T")
Question = Callable[[Any], T]

# How long the driver may take: without persistence mode it wakes each card first.
ANSWER_LIMIT = 20.0

# How long the watch for Xids waits for the next one, and how long before it begins anew after an error.
XID_WAIT_MS = 2000
XID_PAUSE = 5.0

# What the UUIDs of MIG instances begin with.
MIG = "MIG-"

# The instance of an event that is the whole card's (nvmlEventData_t).
WHOLE_CARD = 0xFFFFFFFF

# Between the UUIDs of cards that train together.
SEPARATOR = ","

# nvmlClocksThrottleReason*, without those that are no trouble: idle, clocks set by somebody, boost in step.
THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class DriverError(TrainingWorkerError):
    """The driver is there, and says that something is wrong with it."""


class DriverMissingError(DriverError):
    """There is no driver on this host, or it is not loaded."""


class DriverHangsError(DriverError):
    """The driver does not answer."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A card, or a MIG instance, that the driver shows; ``part`` is its share of the card's memory.

    Of a card that the driver cannot read for a ``fault`` nothing else is known but its place among the others.
    """

    uuid: str
    name: str
    memory_mib: int
    part: float = 1.0
    fault: str | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver says of one card now; None is what the card does not tell.

    Memory in MiB, clocks in MHz, ``utilisation`` in per cent, ``energy_j`` since the driver was loaded, and
    ``ecc_uncorrected`` errors since the last reset. ``processes`` are process ids and what each holds. ``mig`` are the
    UUIDs of the instances, where MIG is on. Of a card that is ``lost``, or that the driver cannot read for a ``fault``,
    nothing else is known.
    """

    uuid: str
    lost: bool = False
    fault: str | None = None
    memory_mib: int | None = None
    free_mib: int | None = None
    processes: dict[int, int | None] | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    throttled: list[str] | None = None
    ecc_uncorrected: int | None = None
    mig: list[str] | None = None


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """The driver's version, and the newest CUDA that it can run."""

    driver: str | None = None
    cuda: str | None = None


class _Thread:
    """Answers one question after the other. It is a daemon thread: the program ends although a call never returns."""

    def __init__(self) -> None:
        self._questions: queue.SimpleQueue[tuple[Future[Any], Question[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="nvml", daemon=True).start()

    def ask(self, question: Question[T]) -> "Future[T]":
        future: Future[T] = Future()
        self._questions.put((future, question))
        return future

    def _run(self) -> None:
        while True:
            future, question = self._questions.get()
            # Whoever gave up waiting has cancelled it: what piled up behind a hung call is not asked for nothing.
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(_answer(question))
            except BaseException as error:  # noqa: BLE001 - it is raised where the question was asked
                future.set_exception(error)


_thread: _Thread | None = None


def _asked(question: Question[T]) -> "Future[T]":
    global _thread  # noqa: PLW0603 - one for the process, and none where nobody asks
    if _thread is None:
        _thread = _Thread()
    return _thread.ask(question)


def ask(question: Question[T], limit: float = ANSWER_LIMIT) -> T:
    """Ask the driver, for at most ``limit`` seconds. Raises `DriverError`, or one of its kinds."""
    future = _asked(question)
    try:
        return future.result(limit)
    except TimeoutError:
        future.cancel()
        raise DriverHangsError(f"the driver has not answered within {limit:g} s") from None


async def ask_async(question: Question[T], limit: float = ANSWER_LIMIT) -> T:
    """The same; other tasks go on meanwhile."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(_asked(question)), limit)
    except TimeoutError:
        raise DriverHangsError(f"the driver has not answered within {limit:g} s") from None


def _import_nvml() -> Any:
    with warnings.catch_warnings():
        # The shell distribution called pynvml warns on import where somebody has installed it too.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml  # noqa: PLC0415 - only the daemon needs the driver, not all who import the package
    return pynvml


def _answer(question: Question[T]) -> T:
    nvml = _import_nvml()
    try:
        # Each time anew: a card that came, or a driver that was loaded again, is seen only so.
        nvml.nvmlInit()
        try:
            return question(nvml)
        finally:
            nvml.nvmlShutdown()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
        raise DriverMissingError(str(error)) from None
    except nvml.NVMLError as error:
        raise DriverError(str(error)) from None


def find(nvml: Any) -> list[Found]:
    """The cards in the driver's order; of a card that is divided by MIG, its instances."""
    return [found for index in range(nvml.nvmlDeviceGetCount()) for found in _find_readable(nvml, index)]


def _find_readable(nvml: Any, index: int) -> list[Found]:
    try:
        return _find(nvml, index)
    except nvml.NVMLError as error:
        # Of this card alone. It keeps its place: the settings may name the others by theirs.
        return [Found(uuid=f"unreadable-{index}", name="unreadable", memory_mib=0, fault=str(error))]


def _find(nvml: Any, index: int) -> list[Found]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    card = _found(nvml, handle)
    instances = _instances(nvml, handle)
    if instances is None:
        return [card]
    parts = [_found(nvml, instance) for instance in instances]
    return [
        msgspec.structs.replace(part, name=card.name, part=part.memory_mib / max(card.memory_mib, 1)) for part in parts
    ]


def _found(nvml: Any, handle: Any) -> Found:
    return Found(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        memory_mib=nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB,
    )


def _instances(nvml: Any, handle: Any) -> list[Any] | None:
    """The MIG instances of a card; None where it has no MIG, or has it off."""
    mode = _told(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if mode is None or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    found = (_told(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number) for number in range(most))
    return [instance for instance in found if instance is not None]


def room(uuid: str) -> Question[tuple[int, float | None]]:
    """How much memory nobody uses, in MiB, and the energy counter in joules, where there is one.

    Of several cards (their UUIDs with commas between) the least memory, and the counters' sum.
    """

    def question(nvml: Any) -> tuple[int, float | None]:
        handles = [nvml.nvmlDeviceGetHandleByUUID(one) for one in uuid.split(SEPARATOR)]
        free = min(int(nvml.nvmlDeviceGetMemoryInfo(handle).free // MIB) for handle in handles)
        return free, _energy_j(nvml, uuid)

    return question


def energy_j(uuid: str) -> Question[float | None]:
    """The energy counter of a card in joules, or of several (their UUIDs with commas between) their sum."""
    return lambda nvml: _energy_j(nvml, uuid)


def _energy_j(nvml: Any, uuid: str) -> float | None:
    counters = [_energy_of(nvml, one) for one in uuid.split(SEPARATOR)]
    known = [counter for counter in counters if counter is not None]
    return sum(known) if len(known) == len(counters) else None


def _energy_of(nvml: Any, uuid: str) -> float | None:
    # The counter is the whole card's: it says nothing of one of several instances.
    if uuid.startswith(MIG):
        return None
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    millijoules = _told(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return None if millijoules is None else millijoules / 1000


def versions(nvml: Any) -> Versions:
    """What runs the cards."""
    cuda = _told(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return Versions(
        driver=_told(nvml, nvml.nvmlSystemGetDriverVersion),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def read(uuids: list[str]) -> Question[dict[str, Reading]]:
    """What the driver says of these cards, by UUID."""
    return lambda nvml: {uuid: _read(nvml, uuid) for uuid in uuids}


def _read(nvml: Any, uuid: str) -> Reading:
    try:
        return _read_handle(nvml, uuid, nvml.nvmlDeviceGetHandleByUUID(uuid))
    except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        # The driver calls a UUID that it does not show any more, after a reset or a reload, an invalid argument.
        return Reading(uuid=uuid, lost=True)
    except nvml.NVMLError as error:
        # Of this card alone: the others are read all the same.
        return Reading(uuid=uuid, fault=str(error))


def _read_handle(nvml: Any, uuid: str, handle: Any) -> Reading:
    told = partial(_told, nvml)
    memory = told(nvml.nvmlDeviceGetMemoryInfo, handle)
    # A MIG instance has memory of its own; heat, power and errors are those of the card that it is a part of.
    whole = told(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if uuid.startswith(MIG) else handle
    utilisation = told(nvml.nvmlDeviceGetUtilizationRates, handle)
    power = told(nvml.nvmlDeviceGetPowerUsage, whole)
    instances = _instances(nvml, handle)
    return Reading(
        uuid=uuid,
        memory_mib=None if memory is None else memory.total // MIB,
        free_mib=None if memory is None else memory.free // MIB,
        processes=_processes(told(nvml.nvmlDeviceGetComputeRunningProcesses, handle)),
        utilisation=None if utilisation is None else utilisation.gpu,
        temperature_c=told(nvml.nvmlDeviceGetTemperature, whole, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        energy_j=_energy_of(nvml, uuid),
        sm_mhz=told(nvml.nvmlDeviceGetClockInfo, whole, nvml.NVML_CLOCK_SM),
        memory_mhz=told(nvml.nvmlDeviceGetClockInfo, whole, nvml.NVML_CLOCK_MEM),
        throttled=_throttling(told(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, whole)),
        ecc_uncorrected=told(
            nvml.nvmlDeviceGetTotalEccErrors,
            whole,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        mig=None if instances is None else [nvml.nvmlDeviceGetUUID(instance) for instance in instances],
    )


def _processes(running: list[Any] | None) -> dict[int, int | None] | None:
    if running is None:
        return None
    held = {one.pid: one.usedGpuMemory for one in running}
    return {pid: None if used is None else used // MIB for pid, used in held.items()}


def _throttling(reasons: int | None) -> list[str] | None:
    return None if reasons is None else [words for bit, words in THROTTLING.items() if reasons & bit]


def _told(nvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns; None if the card cannot tell it. That a card is gone is no such answer: it is raised."""
    try:
        return call(*arguments)
    except nvml.NVMLError_GpuIsLost:
        raise
    except nvml.NVMLError:
        return None


class XidWatch:
    """Listens, in a thread of its own, to the Xids that the driver tells of; each is handed on once.

    An Xid is how the driver reports that something went wrong on a card; most are a program's own fault.
    """

    def __init__(self, uuids: list[str]) -> None:
        self._uuids = uuids
        # By the card that tells, those of ours that it tells of, each with its instance on the card.
        self._members: dict[str, dict[str, int]] = {}
        self._heard: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def start(self) -> None:
        """Listen until the program ends."""
        threading.Thread(target=self._run, name="xid", daemon=True).start()

    def heard(self) -> list[tuple[str, int]]:
        """What came since the last time: each card's UUID, and the Xid."""
        return [self._heard.get_nowait() for _ in range(self._heard.qsize())]

    def _run(self) -> None:
        nvml = _import_nvml()
        while True:
            try:
                nvml.nvmlInit()
                try:
                    self._listen(nvml)
                finally:
                    nvml.nvmlShutdown()
            except nvml.NVMLError:
                # A lost card, a driver that is being replaced, or one that has no events.
                time.sleep(XID_PAUSE)

    def _listen(self, nvml: Any) -> None:
        events = nvml.nvmlEventSetCreate()
        self._members = {}
        try:
            for uuid in self._uuids:
                self._register(nvml, uuid, events)
            while True:
                self._wait(nvml, events)
        finally:
            nvml.nvmlEventSetFree(events)

    def _register(self, nvml: Any, uuid: str, events: Any) -> None:
        # A card without events is watched by its readings alone.
        handle = _told(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
        if handle is None:
            return
        instance = WHOLE_CARD
        if uuid.startswith(MIG):
            # Events are the card's; each says which instance it is of, where it is of one.
            instance = _told(nvml, nvml.nvmlDeviceGetGpuInstanceId, handle)
            handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        card = nvml.nvmlDeviceGetUUID(handle)
        if card not in self._members:
            _told(nvml, nvml.nvmlDeviceRegisterEvents, handle, nvml.nvmlEventTypeXidCriticalError, events)
        self._members.setdefault(card, {})[uuid] = instance

    def _wait(self, nvml: Any, events: Any) -> None:
        try:
            event = nvml.nvmlEventSetWait_v2(events, XID_WAIT_MS)
        except nvml.NVMLError_Timeout:
            return
        for uuid, instance in self._members.get(nvml.nvmlDeviceGetUUID(event.device), {}).items():
            if event.gpuInstanceId in {instance, WHOLE_CARD}:
                self._heard.put((uuid, int(event.eventData)))
