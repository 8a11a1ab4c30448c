"""From a kernel that is broken in a child to what the daemon gives a trainer, without a GPU."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from training_schemas.jobs import EngineName
from training_schemas.selftest import Verdict
from training_schemas.spec import AttentionKernel, Execution
from training_worker.attempts.plan_choice import execution_for
from training_worker.cli.app import app
from training_worker.gpu.devices import GpuDevice
from training_worker.observations import unobserved
from training_worker.selftest.gpu_tests import GpuTests
from training_worker.selftest.program import SelfTestProgram, command_of
from training_worker.settings import SelfTestMode, Settings, program_of

pytestmark = pytest.mark.trainer

ROOT = Path(__file__).parents[3]
GPU = GpuDevice(uuid="SIMULATED-0", name="A", memory_mib=24564, simulated=True, usd_per_hour=None)
FAULTS = ("--faults", "tests.support.kernel_faults:only_math_is_right")


@pytest.fixture(autouse=True)
def faults_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children find the faults, and leave the cores to each other."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


async def test_a_kernel_with_gradients_that_are_none_is_not_in_a_runs_execution(tmp_path: Path) -> None:
    """Flash, which is the trainer's first choice where nothing was tested."""
    settings = Settings(state_dir=tmp_path, self_test=SelfTestMode.CPU)
    assert AttentionKernel.FLASH in execution_for(GPU, settings).attention_kernels
    tests = GpuTests(settings, unobserved, ("--attention-only", *FAULTS))

    assert await tests.ensure(GPU) is None

    (known,) = tests.known
    assert known.faulty == {"attention.flash_attention": Verdict.NOT_FINITE}
    assert execution_for(GPU, settings) == Execution(attention_kernels=(AttentionKernel.MATH,))
    assert await GpuTests(settings, unobserved).recall(GPU)


async def test_an_interpreter_that_has_nothing_of_ours_is_tested_by_its_own_torch(tmp_path: Path) -> None:
    """Only attention is tried there: the children are started as a file."""
    python = program_of(EngineName.DIFFUSERS, Settings().engines[EngineName.DIFFUSERS].command[0])[0]
    program = SelfTestProgram(command_of(EngineName.INVOKE, python), ("--device", "cpu"))
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    test = await program.test("k", env)

    assert test.key == "k"
    assert AttentionKernel.MATH in test.attention
    assert {kernel.name.partition(".")[0] for kernel in test.kernels} == {"attention"}


def test_the_command_reports_that_a_gpu_has_no_right_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a host without a GPU: torch finds none."""
    monkeypatch.setenv("TRAINING_GPUS", '["NVIDIA L4:23034MiB"]')
    monkeypatch.setenv("TRAINING_STATE_DIR", str(tmp_path))

    table = CliRunner().invoke(app, ["selftest"])
    listed = CliRunner().invoke(app, ["selftest", "--json"])

    assert (table.exit_code, listed.exit_code) == (1, 1), table.output
    assert "none is right" in table.stdout
    (found,) = msgspec.json.decode(listed.stdout)
    assert found["gpu"] == "SIMULATED-0"
    assert {kernel["reason"] for kernel in found["test"]["kernels"]} == {"torch finds no GPU"}
