"""What is set for a process that computes on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from msgspec.structs import replace

from training_schemas.jobs import EngineName, TrainingType
from training_schemas.spec import AttentionKernel, Execution, RunSpec
from training_worker.engines.diffusers.training import device
from training_worker.engines.diffusers.training.device import set_up_device

pytestmark = pytest.mark.trainer

SPEC = RunSpec(
    job_id="job",
    attempt=1,
    training_type=TrainingType.FLUX_LORA,
    engine=EngineName.DIFFUSERS,
    model_path="/model",
    dataset_path="/dataset",
    attempt_path="/attempt",
    resume_from=None,
    device="cuda",
    parameters={},
    execution=Execution(attention_kernels=(AttentionKernel.MATH,)),
)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[AttentionKernel, ...]]]:
    """Note which kernels are chosen, and put the rest back."""
    kernels: list[tuple[AttentionKernel, ...]] = []
    monkeypatch.setattr(device, "choose_attention", kernels.append)
    before = torch.get_float32_matmul_precision()
    yield kernels
    torch.set_float32_matmul_precision(before)


def test_a_gpu_computes_float32_in_tf32_and_attends_by_the_runs_kernels(
    chosen: list[tuple[AttentionKernel, ...]],
) -> None:
    """In products and in convolutions."""
    set_up_device(SPEC)

    assert "high" == torch.get_float32_matmul_precision()
    assert torch.backends.cudnn.allow_tf32
    assert [(AttentionKernel.MATH,)] == chosen


def test_a_cpu_computes_float32_as_it_is(chosen: list[tuple[AttentionKernel, ...]]) -> None:
    """Of what is chosen it has attention's kernels alone."""
    before = torch.get_float32_matmul_precision()

    set_up_device(replace(SPEC, device="cpu"))

    assert before == torch.get_float32_matmul_precision()
    assert chosen == [SPEC.execution.attention_kernels]
