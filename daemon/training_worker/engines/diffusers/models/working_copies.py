"""The weights of adapters as they learn, in float32, and as they compute, in the type of the base.

All of them lie in one tensor, of which peft's parameters are views. A forward pass casts it once and takes the copies
from there; what comes back is summed in float32, over micro-batches too, and is the parameters' gradient. So a cast is
one operation and not one for each matrix and pass, and whoever reads or sets a parameter, its gradient or both (the
optimizer, a running mean, a checkpoint) needs to know nothing of it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from training_worker.engines.diffusers.models.adapter_groups import LayerGroup, Tensors


class WorkingCopies:
    """Those of the adapters of some groups of layers."""

    def __init__(self, groups: Sequence[LayerGroup], dtype: torch.dtype, *, apart: bool = False) -> None:
        """Take the weights over. Copies ``apart`` are no views: a compiler would follow those to the whole."""
        self._dtype = dtype
        self._split: Any = torch.split_with_sizes_copy if apart else torch.split_with_sizes
        self._counts = [len(group.pieces) for group in groups]
        pieces = [piece for group in groups for piece in group.pieces]
        self._masters = [master for piece in pieces for master in piece]
        self._sizes = [sum(master.numel() for master in piece) for piece in pieces]
        self._flat = torch.cat([master.detach().flatten() for master in self._masters]).requires_grad_()
        self._sums: list[torch.Tensor] = []
        for master, view in zip(self._masters, self._views(self._flat.detach()), strict=True):
            master.data = view

    def make(self) -> list[Tensors]:
        """Cast all weights; gives each group its own, flat, which are good for one pass forth and back."""
        copies = iter(_Cast.apply(self._flat, self))  # type: ignore[no-untyped-call]
        return [tuple(next(copies) for _ in range(count)) for count in self._counts]

    def cast(self) -> Tensors:
        """Cast, and cut into pieces."""
        copies: Tensors = tuple(self._split(self._flat.detach().to(self._dtype), self._sizes))
        return copies

    def add_gradients(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add those of all pieces to the parameters', which there are none of at a step's first pass."""
        if self._masters[0].grad is None:
            self.begin_gradients()
        found = [(sum_, one) for sum_, one in zip(self._sums, gradients, strict=True) if one is not None]
        if found:
            sums, ones = zip(*found, strict=True)
            torch._foreach_add_(sums, ones)

    def begin_gradients(self) -> None:
        """Give all parameters gradients of zero."""
        total = torch.zeros_like(self._flat, requires_grad=False)
        self._sums = list(total.split_with_sizes(self._sizes))
        for master, view in zip(self._masters, self._views(total), strict=True):
            master.grad = view

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Cut a flat tensor into the shapes of the parameters."""
        parts = flat.split_with_sizes([master.numel() for master in self._masters])
        return [part.view(master.shape) for part, master in zip(parts, self._masters, strict=True)]


class _Cast(torch.autograd.Function):
    """A cast whose gradients are added where they belong: as one tensor of float32 they would all be there twice."""

    @staticmethod
    def forward(ctx: Any, _: torch.Tensor, copies: WorkingCopies) -> Tensors:
        ctx.copies = copies
        ctx.set_materialize_grads(False)
        return copies.cast()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[None, None]:
        ctx.copies.add_gradients(gradients)
        return None, None
