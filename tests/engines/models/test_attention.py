"""Which of torch's kernels attend."""

from collections.abc import Iterator

import pytest
import torch
from torch.backends import cuda

from training_schemas.spec import AttentionKernel, Execution
from training_worker.engines.diffusers.models.attention import choose_attention

pytestmark = pytest.mark.trainer

ENABLED = {
    AttentionKernel.FLASH: cuda.flash_sdp_enabled,
    AttentionKernel.EFFICIENT: cuda.mem_efficient_sdp_enabled,
    AttentionKernel.MATH: cuda.math_sdp_enabled,
    AttentionKernel.CUDNN: cuda.cudnn_sdp_enabled,
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = [int(backend) for backend in torch._C._get_sdp_priority_order()]
    yield
    choose_attention(list(AttentionKernel))
    torch._C._set_sdp_priority_order(before)


@pytest.mark.parametrize(
    "kernels",
    [
        Execution().attention_kernels,
        (AttentionKernel.CUDNN, AttentionKernel.FLASH),
        (AttentionKernel.MATH,),
    ],
)
def test_only_those_that_are_listed_are_used(kernels: tuple[AttentionKernel, ...]) -> None:
    """In their order; cuDNN's is not among those that a run has by itself."""
    choose_attention(kernels)

    found = {kernel for kernel, enabled in ENABLED.items() if enabled()}  # type: ignore[no-untyped-call]
    assert set(kernels) == found
    order = [int(backend) for backend in torch._C._get_sdp_priority_order()]
    listed = [int(getattr(torch.nn.attention.SDPBackend, kernel.upper())) for kernel in kernels]
    assert listed == order[: len(kernels)]
    assert len(order) == len(set(order))


def test_by_itself_a_run_leaves_cudnn_out() -> None:
    """Its backward pass is wrong on some GPUs."""
    assert AttentionKernel.CUDNN not in Execution().attention_kernels
