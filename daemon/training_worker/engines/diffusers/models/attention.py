"""Attention: which of torch's kernels compute it, and that its outputs may be kept where a block is computed again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from training_schemas.spec import AttentionKernel

SWITCHES: dict[AttentionKernel, Callable[[bool], None]] = {
    AttentionKernel.FLASH: torch.backends.cuda.enable_flash_sdp,
    AttentionKernel.EFFICIENT: torch.backends.cuda.enable_mem_efficient_sdp,
    AttentionKernel.MATH: torch.backends.cuda.enable_math_sdp,
    AttentionKernel.CUDNN: torch.backends.cuda.enable_cudnn_sdp,
}
# What the kernels are called among torch's operations. That by plain products is none of its own: it is done again.
KEPT = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,  # noqa: SLF001 # no public twin
    torch.ops.aten._scaled_dot_product_efficient_attention.default,  # noqa: SLF001
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,  # noqa: SLF001
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001
]

_keeping: ContextVar[AbstractContextManager[Any] | None] = ContextVar("keeping", default=None)


def choose_attention(kernels: Sequence[AttentionKernel]) -> None:
    """Let torch use no other kernels than these in this process, the first of them wherever it can.

    cuDNN's is used if it is listed and not otherwise: on an H100 its backward pass gave NaN for FLUX, or ended in an
    illegal memory access.
    """
    for kernel, switch in SWITCHES.items():
        switch(kernel in kernels)
    # The public form of the order is a context manager, and sets nothing for good.
    order = [int(getattr(torch.nn.attention.SDPBackend, kernel.upper())) for kernel in kernels]
    if hasattr(torch._C, "_set_sdp_priority_order"):  # noqa: SLF001 # not before torch 2.7
        # All are in it, once each: torch does not check.
        others = [int(backend) for backend in torch._C._get_sdp_priority_order()]  # noqa: SLF001
        torch._C._set_sdp_priority_order([*order, *(one for one in others if one not in order)])  # noqa: SLF001


def split_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """See (batch, tokens, features) as (batch, tokens, heads, width)."""
    return tokens.view(*tokens.shape[:-1], heads, -1)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend without a mask; all are (batch, tokens, heads, width) and so is the output."""
    keeping = None if torch.compiler.is_compiling() else _keeping.get()
    with nullcontext() if keeping is None else keeping:
        out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def keep_attention() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Make what a block with one attention is to run in, first and again: the second time it finds what it gave.

    torch's own selective checkpointing, but entered for the attention alone: it looks at each operation in Python,
    which all of a block's would wait for.
    """
    first, again = create_selective_checkpoint_contexts(KEPT)  # type: ignore[no-untyped-call]
    return _use(first), _use(again)


@contextmanager
def _use(context: AbstractContextManager[Any]) -> Iterator[None]:
    token = _keeping.set(context)
    try:
        yield
    finally:
        _keeping.reset(token)
