"""What doctor says of kernels: what is remembered, and nothing that it would have to try."""

from pathlib import Path

import msgspec
import pytest

from training_schemas.jobs import EngineName
from training_schemas.selftest import KernelResult, SelfTest, Verdict
from training_schemas.spec import AttentionKernel
from training_worker.doctor.findings import State
from training_worker.doctor.gpus import HostGpus
from training_worker.doctor.kernels import check
from training_worker.gpu.devices import GpuDevice
from training_worker.selftest.remembered import Remembered
from training_worker.settings import SelfTestMode, Settings

MATH = AttentionKernel.MATH
GPUS = HostGpus(
    devices=[
        GpuDevice(uuid="GPU-1,GPU-2", name="A", memory_mib=24564, simulated=False, usd_per_hour=None, count=2),
        GpuDevice(uuid="SIMULATED-0", name="A", memory_mib=24564, simulated=True, usd_per_hour=None),
    ]
)


def remember(folder: Path, gpu: str, **verdicts: Verdict) -> None:
    """A self-test of a GPU; kernels that are right compute attention."""
    kernels = [KernelResult(name=f"attention.{name}", verdict=verdict) for name, verdict in verdicts.items()]
    right = tuple(AttentionKernel(name) for name, verdict in verdicts.items() if verdict is Verdict.RIGHT)
    test = SelfTest(key="k", gpu="A", memory_mib=1, versions={}, kernels=kernels, attention=right)
    Remembered(folder).keep(gpu, EngineName.DIFFUSERS, test)


@pytest.mark.parametrize(
    ("verdicts", "state", "found"),
    [
        (
            {"math": Verdict.RIGHT, "cudnn_attention": Verdict.UNAVAILABLE},
            State.OK,
            "attention by math; nothing is wrong",
        ),
        (
            {"cudnn_attention": Verdict.NOT_FINITE, "math": Verdict.RIGHT},
            State.WARNING,
            "attention by math; not right: attention.cudnn_attention (notFinite)",
        ),
        (
            {"math": Verdict.WRONG},
            State.ERROR,
            "no kernel of attention is right, so it gets no jobs: attention.math (wrong)",
        ),
    ],
)
def test_each_gpu_is_told_with_what_is_not_right(
    tmp_path: Path, verdicts: dict[str, Verdict], state: State, found: str
) -> None:
    """One that was not tested is no fault; one that is made up has no kernels."""
    remember(tmp_path, "GPU-1", **verdicts)

    first, second = check(Settings(state_dir=tmp_path), GPUS)

    assert (first.state, first.found) == (state, f"GPU-1: {found}")
    assert (first.fix is None) is (state is State.OK)
    assert second.state is State.OK
    assert second.found.startswith("GPU-2: not tested yet")


def test_that_it_is_switched_off_is_a_warning(tmp_path: Path) -> None:
    """Whatever is remembered."""
    settings = msgspec.structs.replace(Settings(state_dir=tmp_path), self_test=SelfTestMode.OFF)

    (finding,) = check(settings, GPUS)

    assert finding.state is State.WARNING
