"""The self-test's program: real children, with kernels that are broken on purpose."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from training_schemas.selftest import KernelResult, SelfTest, Verdict, key_of
from training_schemas.spec import AttentionKernel, OptimizerName, Quantization
from training_worker.engines.diffusers.selftest import trials
from training_worker.engines.diffusers.selftest.children import Child
from training_worker.engines.diffusers.selftest.program import by_speed, self_test
from training_worker.engines.diffusers.selftest.trials import LAYERS, OPTIMIZERS, Plan

pytestmark = pytest.mark.trainer

ROOT = Path(__file__).parents[3]
FLASH, MATH = AttentionKernel.FLASH, AttentionKernel.MATH


@pytest.fixture(autouse=True)
def faults_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children find the faults, and leave the cores to each other."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def plan(fault: str | None = None, **fields: object) -> Plan:
    """On the CPU, attention alone."""
    faults = fault and f"tests.support.kernel_faults:{fault}"
    return Plan(**{"device": "cpu", "attention_only": True, "faults": faults} | fields)  # type: ignore[arg-type]


def verdicts(test: SelfTest) -> dict[str, Verdict]:
    """By the kernels' names."""
    return {kernel.name: kernel.verdict for kernel in test.kernels}


def reason(test: SelfTest, kernel: AttentionKernel) -> str:
    """Why a kernel is not used."""
    (found,) = [one for one in test.kernels if one.name == f"attention.{kernel}"]
    return found.reason or ""


def test_each_kernel_that_a_cpu_has_is_right() -> None:
    """Those that it has not are distinguished from wrong ones."""
    test = self_test(plan())

    assert verdicts(test) == {
        "attention.flash_attention": Verdict.RIGHT,
        "attention.cudnn_attention": Verdict.UNAVAILABLE,
        "attention.efficient_attention": Verdict.UNAVAILABLE,
        "attention.math": Verdict.RIGHT,
    }
    assert test.attention == (FLASH, MATH)
    assert all(0 < kernel.error < 0.02 for kernel in test.kernels if kernel.error is not None)
    assert test.key == key_of("cpu", test.versions)
    assert {"torch", "trainer"} <= test.versions.keys()
    assert test.rates is None


def test_wrong_numbers_and_gradients_that_are_none_are_found() -> None:
    """Each at its first shape; neither is used."""
    test = self_test(plan("wrong_and_not_finite"))

    assert verdicts(test)["attention.flash_attention"] is Verdict.WRONG
    assert reason(test, FLASH) == "output of 1 x 2 heads of 16, 80 to 80 tokens: off by 10.0%"
    assert verdicts(test)["attention.math"] is Verdict.NOT_FINITE
    assert "gradient of 1 x 2 heads of 16, 80 to 80 tokens: not finite" in reason(test, MATH)
    assert test.attention == ()


def test_a_kernel_that_takes_its_process_along_and_one_that_never_ends_are_found() -> None:
    """Each only costs its own child."""
    test = self_test(plan("crash_and_hang", silence=5))

    assert verdicts(test)["attention.flash_attention"] is Verdict.CRASHED
    assert reason(test, FLASH).startswith("killed by SIGABRT")
    assert verdicts(test)["attention.math"] is Verdict.HUNG
    assert test.attention == ()


def test_a_kernel_that_loses_the_context_has_crashed_though_its_process_lives() -> None:
    """An error that is no refusal of the inputs."""
    test = self_test(plan("refuse"))

    assert verdicts(test)["attention.math"] is Verdict.CRASHED
    assert reason(test, MATH) == "RuntimeError: CUDA error: an illegal memory access was encountered"


def test_a_layer_that_crashes_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tried in another child."""
    layers = [group for group in trials.groups(plan("lost_layer", attention_only=False)) if group.names == LAYERS]
    monkeypatch.setattr(trials, "groups", lambda _: layers)

    found = trials.try_all(plan())

    assert {name: kernel.verdict for name, kernel in found.kernels.items()} == {
        "base.none": Verdict.RIGHT,
        "base.fp8": Verdict.CRASHED,
        "base.int8": Verdict.RIGHT,
        "base.nf4": Verdict.WRONG,
    }
    assert (found.kernels["base.fp8"].reason or "").startswith("killed by SIGSEGV")


def test_optimizers_and_rates_are_measured() -> None:
    """Of a CPU they mean nothing, but all are there."""
    groups = {group.names: group for group in trials.groups(plan(attention_only=False))}
    optimizers = list(Child(groups[OPTIMIZERS].command_for(OPTIMIZERS[1:])))
    results = [msgspec.convert(line.result, KernelResult) for line in optimizers if line.result is not None]
    assert [one.name for one in results] == [f"optimizer.{name}" for name in list(OptimizerName)[1:]]
    assert {one.verdict for one in results} == {Verdict.RIGHT}

    rates = trials.measured(plan(), (FLASH, MATH))

    assert set(rates["attention"]) == {FLASH, MATH}
    assert set(rates["restoredPerSecond"]) == set(Quantization) - {Quantization.NONE}
    for name in ("productFlops", "attentionForwardFlops", "attentionBackwardFlops", "bytesPerSecond", "launchSeconds"):
        assert rates[name] > 0


def test_a_host_without_a_gpu_has_no_kernel_for_one() -> None:
    """Nor does the program report that it has."""
    command = [sys.executable, "-m", "training_worker.engines.diffusers.selftest", "--attention-only"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    test = msgspec.json.decode(done.stdout, type=SelfTest)
    assert set(verdicts(test).values()) == {Verdict.UNAVAILABLE}
    assert {kernel.reason for kernel in test.kernels} == {"torch finds no GPU"}


def test_the_fastest_kernel_is_first_and_what_was_not_timed_last() -> None:
    """Math may lack the memory for long lengths."""
    kernels = (FLASH, AttentionKernel.CUDNN, MATH)

    assert by_speed(kernels, {FLASH: 2e-3, AttentionKernel.CUDNN: 1e-3}) == (AttentionKernel.CUDNN, FLASH, MATH)


def test_a_child_whose_grandchild_holds_its_output_has_ended() -> None:
    """The compiler's workers may do that."""
    script = "import subprocess; subprocess.Popen(['sleep', '60']); print('{\"trial\": \"x\"}', flush=True)"
    child = Child([sys.executable, "-c", script])

    assert [line.trial for line in child] == ["x"]
    assert child.end.status == 0
