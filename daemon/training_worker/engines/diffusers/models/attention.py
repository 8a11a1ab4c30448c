"""The kernels of torch's attention that a process may use."""

from collections.abc import Collection

import torch

from training_schemas.spec import AttentionKernel


def choose_attention(kernels: Collection[AttentionKernel]) -> None:
    """Use only these kernels from now on; torch takes the first of them, in an order of its own, that suits a call."""
    cuda = torch.backends.cuda
    cuda.enable_flash_sdp(AttentionKernel.FLASH in kernels)
    cuda.enable_mem_efficient_sdp(AttentionKernel.EFFICIENT in kernels)
    cuda.enable_math_sdp(AttentionKernel.MATH in kernels)
    cuda.enable_cudnn_sdp(AttentionKernel.CUDNN in kernels)
