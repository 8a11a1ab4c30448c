"""The tests of a worker's GPUs: remembered ones where they hold, new ones where they do not."""

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from training_schemas.events import GpuKernels
from training_schemas.jobs import EngineName
from training_schemas.selftest import SelfTest, Verdict, key_of
from training_worker.gpu import nvml
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.nvml import SEPARATOR, DriverError
from training_worker.observations import KernelsTested, Observer
from training_worker.runs.environment import trainer_environment
from training_worker.selftest.program import SelfTestError, SelfTestProgram, programs
from training_worker.selftest.remembered import Remembered
from training_worker.settings import SelfTestMode, Settings

# GPUs at a time: each keeps a few processes busy that load torch.
AT_ONCE = 4

# How the program says that a kernel had no memory.
OUT_OF_MEMORY = "out of memory"

log = structlog.get_logger()


class GpuTests:
    """What is known of the kernels of this worker's GPUs."""

    def __init__(self, settings: Settings, observe: Observer, arguments: Sequence[str] = ()) -> None:
        """Make none yet; further ``arguments`` are for the program."""
        self._mode = settings.self_test
        on_cpu = ("--device", "cpu") if self._mode is SelfTestMode.CPU else ()
        self._programs = {} if self._mode is SelfTestMode.OFF else programs(settings, (*on_cpu, *arguments))
        self._observe = observe
        self._remembered = Remembered(settings.state_dir)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._known: dict[tuple[str, EngineName], SelfTest] = {}

    @property
    def known(self) -> list[GpuKernels]:
        """What is known by now, for an event: of each GPU in each engine's interpreter."""
        return [described(gpu, engine, test) for (gpu, engine), test in sorted(self._known.items())]

    async def recall(self, device: GpuDevice) -> bool:
        """Take up what still holds of a slot's GPUs, and forget the rest. True if that leaves nothing to test."""
        pairs = self._pairs(device)
        for gpu, engine in pairs:
            test = self._remembered.find(gpu, engine)
            try:
                holds = test is not None and test.key == await self._key(device, gpu, engine)
            except SelfTestError as error:
                log.warning("self_test_key_unknown", gpu=gpu, engine=engine, error=str(error))
                holds = False
            if test is not None and holds:
                self._note(gpu, engine, test)
            else:
                # A run may be prepared before it is made again.
                self._remembered.forget(gpu, engine)
        return all(pair in self._known for pair in pairs)

    async def ensure(self, device: GpuDevice) -> str | None:
        """Test what is not known of a slot's GPUs; why they are unfit for jobs, if they are."""
        missing = [pair for pair in self._pairs(device) if pair not in self._known]
        faults = [await self._test(device, gpu, engine) for gpu, engine in missing]
        return next((fault for fault in faults if fault is not None), None)

    def _pairs(self, device: GpuDevice) -> list[tuple[str, EngineName]]:
        if device.simulated and self._mode is not SelfTestMode.CPU:
            return []
        return [(gpu, engine) for gpu in device.uuid.split(SEPARATOR) for engine in self._programs]

    async def _test(self, device: GpuDevice, gpu: str, engine: EngineName) -> str | None:
        log.info("self_test_begins", gpu=gpu, engine=engine)
        program = self._programs[engine]
        try:
            async with self._room:
                key = await self._key(device, gpu, engine)
                test = await program.test(key, _environment(device, gpu))
        except SelfTestError as error:
            log.error("self_test_failed", gpu=gpu, engine=engine, error=str(error))  # noqa: TRY400 - a child's failure
            return f"the self-test for {engine} failed: {error}"
        # Where others held the memory, or nothing works, it is a verdict until the next start.
        lasting = test.attention and not any((one.reason or "").startswith(OUT_OF_MEMORY) for one in test.kernels)
        self._remembered.keep(gpu, engine, test if lasting else msgspec.structs.replace(test, key=""))
        if not test.attention:
            self._observe_test(gpu, engine, test)
            return f"no kernel of attention is right for {engine}: {_told(test)}"
        self._note(gpu, engine, test)
        return None

    async def _key(self, device: GpuDevice, gpu: str, engine: EngineName) -> str:
        program: SelfTestProgram = self._programs[engine]
        versions = await program.versions(_environment(device, gpu))
        return key_of(gpu, {**versions, **await _driver(device)})

    def _note(self, gpu: str, engine: EngineName, test: SelfTest) -> None:
        self._known[gpu, engine] = test
        self._observe_test(gpu, engine, test)

    def _observe_test(self, gpu: str, engine: EngineName, test: SelfTest) -> None:
        verdicts = {kernel.name: kernel.verdict for kernel in test.kernels}
        self._observe(KernelsTested(gpu=gpu, engine=engine, verdicts=verdicts))
        told = described(gpu, engine, test)
        say = log.warning if told.faulty else log.info
        say("self_test", gpu=gpu, engine=engine, right=told.attention, faulty=told.faulty, seconds=test.seconds)


def described(gpu: str, engine: EngineName, test: SelfTest) -> GpuKernels:
    """A self-test in short: the kernels of attention that are used, and what is not right, by its verdict."""
    fine = (Verdict.RIGHT, Verdict.UNAVAILABLE)
    faulty = {kernel.name: kernel.verdict for kernel in test.kernels if kernel.verdict not in fine}
    return GpuKernels(gpu=gpu, engine=engine, attention=list(test.attention), faulty=faulty)


def _told(test: SelfTest) -> str:
    attention = [one for one in test.kernels if one.name.startswith("attention.")]
    return ", ".join(f"{one.name} {one.verdict}" + (f" ({one.reason})" if one.reason else "") for one in attention)


def _environment(device: GpuDevice, gpu: str) -> dict[str, str]:
    return trainer_environment(msgspec.structs.replace(device, uuid=gpu, count=1))


async def _driver(device: GpuDevice) -> dict[str, str]:
    if device.simulated:
        return {}
    try:
        versions = await nvml.ask_async(nvml.versions)
    except DriverError as error:
        raise SelfTestError(f"the driver does not say its version: {error}") from None
    return {"driver": versions.driver or "unknown"}
