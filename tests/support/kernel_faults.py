"""Kernels that are broken on purpose, for the self-test's children: functions of a trial's name and its tensor."""

import os
import signal
import time
from typing import Any

import torch

FLASH, MATH = "attention.flash_attention", "attention.math"


class _NanBackward(torch.autograd.Function):
    """What cuDNN's kernel did on an H100: the output is fine, the gradients are not."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return gradients[0] * torch.nan


def wrong_and_not_finite(name: str, value: torch.Tensor) -> torch.Tensor:
    """Flash gives other numbers, math gradients that are none."""
    if name == FLASH:
        return value * 1.1
    broken: torch.Tensor = _NanBackward.apply(value) if name == MATH else value  # type: ignore[no-untyped-call]
    return broken


def only_math_is_right(name: str, value: torch.Tensor) -> torch.Tensor:
    """Flash gives gradients that are no numbers."""
    return wrong_and_not_finite(MATH, value) if name == FLASH else value


def crash_and_hang(name: str, value: torch.Tensor) -> torch.Tensor:
    """Flash takes its process along, math never ends."""
    if name == FLASH:
        os.abort()
    if name == MATH:
        time.sleep(3600)
    return value


def refuse(name: str, value: torch.Tensor) -> torch.Tensor:
    """Raise as a kernel does that has lost the GPU's context."""
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")


def lost_layer(name: str, value: torch.Tensor) -> torch.Tensor:
    """The second kind of base takes its process along, the fourth is wrong."""
    if name == "base.fp8":
        os.kill(os.getpid(), signal.SIGSEGV)
    return value * 1.2 if name == "base.nf4" else value
