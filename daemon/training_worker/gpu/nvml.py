"""NVML, called in one place: from its own thread and with a time limit, so that a hung driver blocks nothing else."""

import asyncio
import queue
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import msgspec

from training_worker.errors import TrainingWorkerError
from training_worker.observations import Reading

MIB = 1024 * 1024
T = TypeVar("T")
Question = Callable[[Any], T]

# How long the driver may take: without persistence mode it wakes each GPU first.
ANSWER_LIMIT = 20.0


# Prefix of the UUIDs of MIG instances.
MIG = "MIG-"


# Separates the UUIDs of GPUs that train together.
SEPARATOR = ","

# nvmlClocksThrottleReason*, without the harmless ones: idle, clocks set by somebody, boost in step.
THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class DriverError(TrainingWorkerError):
    """The driver exists, and reports that something is wrong with it."""


class DriverMissingError(DriverError):
    """There is no driver on this host, or it is not loaded."""


class DriverHangsError(DriverError):
    """The driver does not answer."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, or a MIG instance, that the driver shows; ``part`` is its share of the GPU's memory.

    Of a GPU that the driver cannot read because of a ``fault``, nothing else is known but its place among the others.
    """

    uuid: str
    name: str
    memory_mib: int
    part: float = 1.0
    fault: str | None = None


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """The driver's version, and the newest CUDA that it can run."""

    driver: str | None = None
    cuda: str | None = None


class _Thread:
    """Answers one question after the other. It is a daemon thread: the program ends even if a call never returns."""

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
            # A caller that gave up waiting has cancelled it: what piled up behind a hung call is skipped.
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(_answer(question))
            except BaseException as error:  # noqa: BLE001 - it is raised where the question was asked
                future.set_exception(error)


_thread: _Thread | None = None


def _asked(question: Question[T]) -> "Future[T]":
    global _thread  # noqa: PLW0603 - one for the process, started with the first question
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
    """Ask as `ask` does; other tasks run meanwhile."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(_asked(question)), limit)
    except TimeoutError:
        raise DriverHangsError(f"the driver has not answered within {limit:g} s") from None


def import_nvml() -> Any:
    with warnings.catch_warnings():
        # The shell distribution called pynvml warns on import where somebody has installed it too.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml  # noqa: PLC0415 - only the daemon needs the driver, not all who import the package
    return pynvml


def _answer(question: Question[T]) -> T:
    nvml = import_nvml()
    try:
        # Initialized each time: only then a new GPU, or a driver that was loaded again, is seen.
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
    """Return the GPUs in the driver's order; of a GPU that is divided by MIG, its instances."""
    return [found for index in range(nvml.nvmlDeviceGetCount()) for found in _find_readable(nvml, index)]


def _find_readable(nvml: Any, index: int) -> list[Found]:
    try:
        return _find(nvml, index)
    except nvml.NVMLError as error:
        # The fault of this GPU alone. It keeps its place: the settings may name the others by theirs.
        return [Found(uuid=f"unreadable-{index}", name="unreadable", memory_mib=0, fault=str(error))]


def _find(nvml: Any, index: int) -> list[Found]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    device = _found(nvml, handle)
    instances = _instances(nvml, handle)
    if instances is None:
        return [device]
    parts = [_found(nvml, instance) for instance in instances]
    return [
        msgspec.structs.replace(part, name=device.name, part=part.memory_mib / max(device.memory_mib, 1))
        for part in parts
    ]


def _found(nvml: Any, handle: Any) -> Found:
    return Found(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        memory_mib=nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB,
    )


def _instances(nvml: Any, handle: Any) -> list[Any] | None:
    """Return the MIG instances of a GPU; None where it has no MIG, or has it off."""
    mode = answer_of(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if mode is None or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    found = (answer_of(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number) for number in range(most))
    return [instance for instance in found if instance is not None]


def room(uuid: str) -> Question[tuple[int, float | None]]:
    """Ask how much memory nobody uses, in MiB, and for the energy counter in joules, where there is one.

    Of several GPUs (their UUIDs separated by commas) the least memory counts, and the counters' sum.
    """

    def question(nvml: Any) -> tuple[int, float | None]:
        handles = [nvml.nvmlDeviceGetHandleByUUID(one) for one in uuid.split(SEPARATOR)]
        free = min(int(nvml.nvmlDeviceGetMemoryInfo(handle).free // MIB) for handle in handles)
        return free, _energy_j(nvml, uuid)

    return question


def energy_j(uuid: str) -> Question[float | None]:
    """Ask for the energy counter of a GPU in joules, or of several (their UUIDs separated by commas) the sum."""
    return lambda nvml: _energy_j(nvml, uuid)


def _energy_j(nvml: Any, uuid: str) -> float | None:
    counters = [_energy_of(nvml, one) for one in uuid.split(SEPARATOR)]
    known = [counter for counter in counters if counter is not None]
    return sum(known) if len(known) == len(counters) else None


def _energy_of(nvml: Any, uuid: str) -> float | None:
    # The counter is the whole GPU's: it is not valid for one of several instances.
    if uuid.startswith(MIG):
        return None
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    millijoules = answer_of(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return None if millijoules is None else millijoules / 1000


def versions(nvml: Any) -> Versions:
    """Return the versions of what runs the GPUs."""
    cuda = answer_of(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return Versions(
        driver=answer_of(nvml, nvml.nvmlSystemGetDriverVersion),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def read(uuids: list[str]) -> Question[dict[str, Reading]]:
    """Ask for the driver's readings of these GPUs, by UUID."""
    return lambda nvml: {uuid: _read(nvml, uuid) for uuid in uuids}


def _read(nvml: Any, uuid: str) -> Reading:
    try:
        return _read_handle(nvml, uuid, nvml.nvmlDeviceGetHandleByUUID(uuid))
    except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        # The driver calls a UUID that it no longer shows, after a reset or a reload, an invalid argument.
        return Reading(uuid=uuid, lost=True)
    except nvml.NVMLError as error:
        # The fault of this GPU alone: the others are read all the same.
        return Reading(uuid=uuid, fault=str(error))


def _read_handle(nvml: Any, uuid: str, handle: Any) -> Reading:
    query = partial(answer_of, nvml)
    memory = query(nvml.nvmlDeviceGetMemoryInfo, handle)
    # A MIG instance has its own memory; temperature, power and errors are those of the GPU that it is a part of.
    whole = query(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if uuid.startswith(MIG) else handle
    utilisation = query(nvml.nvmlDeviceGetUtilizationRates, handle)
    power = query(nvml.nvmlDeviceGetPowerUsage, whole)
    instances = _instances(nvml, handle)
    return Reading(
        uuid=uuid,
        memory_mib=None if memory is None else memory.total // MIB,
        free_mib=None if memory is None else memory.free // MIB,
        processes=_processes(query(nvml.nvmlDeviceGetComputeRunningProcesses, handle)),
        utilisation=None if utilisation is None else utilisation.gpu,
        temperature_c=query(nvml.nvmlDeviceGetTemperature, whole, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        energy_j=_energy_of(nvml, uuid),
        sm_mhz=query(nvml.nvmlDeviceGetClockInfo, whole, nvml.NVML_CLOCK_SM),
        memory_mhz=query(nvml.nvmlDeviceGetClockInfo, whole, nvml.NVML_CLOCK_MEM),
        throttled=_throttling(query(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, whole)),
        ecc_uncorrected=query(
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
    return None if reasons is None else [reason for bit, reason in THROTTLING.items() if reasons & bit]


def answer_of(nvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """Return a call's result; None if the GPU does not support it. The error of a lost GPU is raised."""
    try:
        return call(*arguments)
    except nvml.NVMLError_GpuIsLost:
        raise
    except nvml.NVMLError:
        return None
