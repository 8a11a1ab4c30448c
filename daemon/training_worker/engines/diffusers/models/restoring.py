"""Weights in 8 bits, multiplied out for a pass.

On a CUDA GPU by one kernel of Triton, which reads a byte and writes a number, where torch's two operations write it,
read it and write it again. Where Triton is missing or cannot compile, torch's operations do it.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch

Restore = Callable[[torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]


def restore(numbers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply a weight (out, in) out: 8-bit numbers by a float32 scale (out, 1), rounded once to ``dtype``."""
    # What is compiled is fused anyway.
    if numbers.device.type != "cuda" or torch.compiler.is_compiling():
        return restore_in_torch(numbers, scale, dtype)
    return _fastest().restore(numbers, scale, dtype)


def restore_in_torch(numbers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Do the same by two operations."""
    # Every value is one of the larger types too, and in place there is no second copy: it is rounded once.
    return numbers.to(dtype).mul_(scale)


class GuardedRestore:
    """A kernel until it fails for the first time, and torch's operations from then on."""

    def __init__(self, kernel: Restore) -> None:
        self._kernel: Restore | None = kernel

    def restore(self, numbers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Multiply a weight out. Raises `torch.OutOfMemoryError`."""
        if self._kernel is not None:
            try:
                return self._kernel(numbers, scale, dtype)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 # whatever its compiler cannot do on this machine
                _warn(f"Triton failed: {error}")
                self._kernel = None
        return restore_in_torch(numbers, scale, dtype)


@cache
def _fastest() -> GuardedRestore:
    try:
        from training_worker.engines.diffusers.models.restoring_kernel import restore_on_card  # noqa: PLC0415
    except ImportError as error:
        _warn(str(error))
        return GuardedRestore(restore_in_torch)
    return GuardedRestore(restore_on_card)


def _warn(why: str) -> None:
    warnings.warn(f"8-bit weights are restored by torch, which is slower: {why}", RuntimeWarning, stacklevel=3)
