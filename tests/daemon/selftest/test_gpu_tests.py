"""The tests of a worker's GPUs, by a program that says what the test told it to; what trainers are told of them."""

import sys
from pathlib import Path

import msgspec
import pytest

from training_schemas.events import GpuKernels
from training_schemas.jobs import EngineName
from training_schemas.selftest import KernelResult, SelfTest, Verdict, key_of
from training_schemas.spec import AttentionKernel, Execution
from training_worker.attempts.plan_choice import execution_for
from training_worker.gpu import nvml
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.nvml import DriverHangsError, Versions
from training_worker.observations import KernelsTested, Observation
from training_worker.selftest.gpu_tests import GpuTests
from training_worker.selftest.program import SelfTestProgram, programs
from training_worker.selftest.remembered import Remembered
from training_worker.settings import EngineSettings, SelfTestMode, Settings, program_of

DIFFUSERS = EngineName.DIFFUSERS
FLASH, CUDNN, MATH = AttentionKernel.FLASH, AttentionKernel.CUDNN, AttentionKernel.MATH
VERSIONS = {"torch": "2.11.0"}

# Says the versions, or the result with the key that it is given, and notes on which GPU it was asked to test.
PROGRAM = """
import json, os, sys
folder = sys.argv[1]
if "--versions" in sys.argv:
    print(open(folder + "/versions").read())
else:
    with open(folder + "/asked", "a") as file:
        print(os.environ["CUDA_VISIBLE_DEVICES"], file=file)
    print(json.dumps(json.load(open(folder + "/result")) | {"key": sys.argv[-1]}))
"""


class Host:
    """A host whose program and driver say what they are told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.settings = Settings(state_dir=folder / "state")
        self.observed: list[Observation] = []
        self.driver: str | None = "580.1"
        (folder / "program.py").write_text(PROGRAM)
        self.has(VERSIONS)

    def has(self, versions: dict[str, str]) -> None:
        """These are installed now."""
        (self._folder / "versions").write_bytes(msgspec.json.encode(versions))

    def finds(self, attention: tuple[AttentionKernel, ...], *kernels: KernelResult) -> None:
        """The next tests find this."""
        test = SelfTest(key="", gpu="A", memory_mib=1, versions=VERSIONS, kernels=list(kernels), attention=attention)
        (self._folder / "result").write_bytes(msgspec.json.encode(test))

    def start(self) -> GpuTests:
        """Of a worker that starts."""
        tests = GpuTests(self.settings, self.observed.append)
        command = [sys.executable, str(self._folder / "program.py"), str(self._folder)]
        tests._programs = {DIFFUSERS: SelfTestProgram(command)}
        return tests

    @property
    def asked(self) -> list[str]:
        """The GPUs that were tested so far."""
        path = self._folder / "asked"
        return path.read_text().split() if path.exists() else []

    async def ask(self, _: object, __: float = 0) -> Versions:
        """In place of the driver."""
        if self.driver is None:
            raise DriverHangsError("the driver has not answered")
        return Versions(driver=self.driver)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """On which flash and math are right, and cuDNN's kernel gives gradients that are no numbers."""
    host = Host(tmp_path)
    monkeypatch.setattr(nvml, "ask_async", host.ask)
    host.finds((FLASH, MATH), kernel(FLASH), kernel(CUDNN, Verdict.NOT_FINITE, "gradients"), kernel(MATH))
    return host


def kernel(name: AttentionKernel, verdict: Verdict = Verdict.RIGHT, reason: str | None = None) -> KernelResult:
    """One that was tried."""
    return KernelResult(name=f"attention.{name}", verdict=verdict, reason=reason)


def device(uuid: str = "GPU-1", *, simulated: bool = False) -> GpuDevice:
    """A GPU that is there."""
    return GpuDevice(uuid=uuid, name="A", memory_mib=24564, simulated=simulated, usd_per_hour=None)


async def test_a_gpu_is_tested_once_and_remembered(host: Host) -> None:
    """What is not right is told to whoever measures, and in events; a trainer is not told of it."""
    tests = host.start()
    assert not await tests.recall(device())
    assert tests.known == []

    assert await tests.ensure(device()) is None

    faulty = {"attention.cudnn_attention": Verdict.NOT_FINITE}
    known = [GpuKernels(gpu="GPU-1", engine="diffusers", attention=[FLASH, MATH], faulty=faulty)]
    assert tests.known == known
    verdicts = faulty | {f"attention.{name}": Verdict.RIGHT for name in (FLASH, MATH)}
    assert host.observed == [KernelsTested(gpu="GPU-1", engine=DIFFUSERS, verdicts=verdicts)]
    assert execution_for(device(), host.settings) == Execution(attention_kernels=(FLASH, MATH))

    again = host.start()
    assert await again.recall(device())
    assert again.known == known
    assert await again.ensure(device()) is None
    assert host.asked == ["GPU-1"]


@pytest.mark.parametrize("change", ["driver", "torch"])
async def test_a_gpu_is_tested_anew_after_a_change(host: Host, change: str) -> None:
    """What held before is forgotten at once: until the test has ended, trainers are told the default."""
    await host.start().ensure(device())
    if change == "driver":
        host.driver = "590.2"
    else:
        host.has({"torch": "2.12.0"})
    host.finds((MATH,), kernel(MATH))

    tests = host.start()

    assert not await tests.recall(device())
    assert execution_for(device(), host.settings) == Execution()
    await tests.ensure(device())
    assert execution_for(device(), host.settings) == Execution(attention_kernels=(MATH,))
    assert host.asked == ["GPU-1", "GPU-1"]
    test = Remembered(host.settings.state_dir).find("GPU-1", DIFFUSERS)
    assert test is not None
    versions = {"torch": "2.12.0" if change == "torch" else "2.11.0"}
    assert test.key == key_of("GPU-1", {**versions, "driver": host.driver or ""})


async def test_a_gpu_without_a_right_kernel_is_unfit_and_tested_again(host: Host) -> None:
    """The reason names each kernel."""
    host.finds((), kernel(FLASH, Verdict.CRASHED, "killed by SIGABRT"), kernel(MATH, Verdict.WRONG))
    tests = host.start()

    assert await tests.ensure(device()) == (
        "no kernel of attention is right for diffusers: attention.flash_attention crashed (killed by SIGABRT), "
        "attention.math wrong"
    )
    assert execution_for(device(), host.settings) == Execution()
    assert not await host.start().recall(device())
    host.finds((MATH,), kernel(MATH))
    assert await tests.ensure(device()) is None


async def test_what_lacked_memory_is_used_and_tried_again_at_the_next_start(host: Host) -> None:
    """Others held the GPU."""
    host.finds((MATH,), kernel(FLASH, Verdict.UNAVAILABLE, "out of memory at every shape"), kernel(MATH))
    await host.start().ensure(device())

    assert execution_for(device(), host.settings).attention_kernels == (MATH,)
    assert not await host.start().recall(device())


async def test_a_program_that_fails_leaves_the_gpu_unfit(host: Host) -> None:
    """Nothing is known of its kernels then; its last words are told."""
    tests = host.start()
    tests._programs = {DIFFUSERS: SelfTestProgram([sys.executable, "-c", "raise SystemExit('no module')"])}
    reason = await tests.ensure(device())
    assert reason == "the self-test for diffusers failed: exit status 1: no module"

    tests._programs = {DIFFUSERS: SelfTestProgram(["/not/there"])}
    assert "cannot be started" in (await tests.ensure(device()) or "")


async def test_a_driver_that_does_not_answer_leaves_the_gpu_unfit(host: Host) -> None:
    """It cannot be said what a result would hold for."""
    host.driver = None

    assert not await host.start().recall(device())
    assert "does not say its version" in (await host.start().ensure(device()) or "")


async def test_each_gpu_of_a_slot_is_tested_and_only_what_is_right_on_all_is_used(host: Host) -> None:
    """Of one that is not tested nothing is known of all."""
    both = device("GPU-1,GPU-2")
    await host.start().ensure(device("GPU-1"))
    assert execution_for(both, host.settings) == Execution()
    host.finds((MATH, CUDNN), kernel(MATH), kernel(CUDNN))

    tests = host.start()
    assert not await tests.recall(both)
    await tests.ensure(both)

    assert host.asked == ["GPU-1", "GPU-2"]
    assert execution_for(both, host.settings).attention_kernels == (MATH,)


async def test_a_gpu_that_is_made_up_is_not_tested(host: Host) -> None:
    """Nor is any where that is switched off."""
    assert await host.start().recall(device("SIMULATED-0", simulated=True))
    off = msgspec.structs.replace(host.settings, self_test=SelfTestMode.OFF)
    assert await GpuTests(off, host.observed.append).recall(device())
    await host.start().ensure(device())
    assert execution_for(device(), off) == Execution()


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """It is made anew."""
    remembered = Remembered(tmp_path)
    test = SelfTest(key="k", gpu="A", memory_mib=1, versions={}, kernels=[], attention=(MATH,))
    remembered.keep("GPU-1", DIFFUSERS, test)
    assert remembered.find("GPU-1", DIFFUSERS) == test
    (path,) = (tmp_path / "selftest").iterdir()

    path.write_bytes(path.read_bytes()[:-3])

    assert remembered.find("GPU-1", DIFFUSERS) is None
    remembered.forget("GPU-1", DIFFUSERS)
    remembered.forget("GPU-1", DIFFUSERS)
    assert list((tmp_path / "selftest").iterdir()) == []


def test_only_our_own_trainers_are_tested() -> None:
    """invoke-training's interpreter has nothing of ours: ours starts the children there."""
    engines = {
        DIFFUSERS: EngineSettings(command=["/bin/true"]),
        EngineName.INVOKE: EngineSettings(command=program_of(EngineName.INVOKE, "/opt/python")),
    }

    (name, program), *others = programs(Settings(engines=engines)).items()

    assert (name, others) == (EngineName.INVOKE, [])
    assert program._command[0] == sys.executable
    assert program._command[-2:] == ["--python", "/opt/python"]
