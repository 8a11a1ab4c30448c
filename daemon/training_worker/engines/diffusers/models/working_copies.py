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
        for master, view in zip(self._masters, self._views(self._flat.detach()), strict=True):
            master.data = view
        self._flat.register_post_accumulate_grad_hook(self._hand_out_gradients)  # type: ignore[no-untyped-call]

    def make(self) -> list[Tensors]:
        """Cast all weights; gives each group its own, flat, which are good for one pass forth and back."""
        if self._masters[0].grad is None:  # a new step has begun
            self._flat.grad = None
        copies = iter(self._split(self._flat.to(self._dtype), self._sizes))
        return [tuple(next(copies) for _ in range(count)) for count in self._counts]

    def _hand_out_gradients(self, flat: torch.Tensor) -> None:
        # Later micro-batches are added in place, so that these views stay true.
        if flat.grad is not None and self._masters[0].grad is None:
            for master, view in zip(self._masters, self._views(flat.grad), strict=True):
                master.grad = view

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Cut a flat tensor into the shapes of the parameters."""
        parts = flat.split_with_sizes([master.numel() for master in self._masters])
        return [part.view(master.shape) for part, master in zip(parts, self._masters, strict=True)]
