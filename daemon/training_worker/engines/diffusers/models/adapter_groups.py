"""Linear layers of one input as one function of autograd, with low-rank adapters beside them (arXiv:2106.09685).

A layer gives ``x W^T + bias + (x A^T) B^T``. One by one, as peft does it under autocast, each layer casts its input,
A and B, and writes its adapter's output before it is added; here the input is taken once, ``x A^T`` is one product for
all layers, and an adapter's output is added where the layer's lies. Kept for the backward pass are ``x A^T`` and, where
there is an adapter, the inputs; a quantized weight is restored in each pass and never kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from training_worker.engines.diffusers.models.quantization import EightBitLinear
from training_worker.engines.diffusers.models.restoring import restore

ADAPTER = "default"  # peft's name of the only one

Tensors = tuple[torch.Tensor, ...]


class LayerGroup:
    """Linear layers which have the same input, some of them with adapters of peft beside them."""

    def __init__(self, layers: Sequence[Any]) -> None:
        adapted = [layer for layer in layers if hasattr(layer, "lora_A")]
        self._bases = tuple(layer.base_layer if hasattr(layer, "base_layer") else layer for layer in layers)
        self._adapters = tuple(adapted.index(layer) if layer in adapted else None for layer in layers)
        self._rank = adapted[0].r[ADAPTER] if adapted else 0
        downs = [layer.lora_A[ADAPTER].weight for layer in adapted]
        ups = [[layer.lora_B[ADAPTER].weight] for layer in adapted]
        if any(layer.scaling[ADAPTER] != 1.0 for layer in adapted):
            raise ValueError("an adapter's alpha is to be its rank")
        self.pieces: list[list[nn.Parameter]] = [downs, *ups] if adapted else []
        """The adapters' weights, those that are one tensor in `__call__` together: each A, then B by B."""
        self.shapes = [(sum(len(one) for one in piece), piece[0].shape[1]) for piece in self.pieces]

    def __call__(self, weights: Tensors, *inputs: torch.Tensor) -> Tensors:
        """Give each layer's output (..., out).

        ``inputs`` are one input (..., in), or several that stand for their concatenation by features. ``weights`` are
        copies of `pieces`, each flat, in the type of the inputs.
        """
        shaped = [one.view(shape) for one, shape in zip(weights, self.shapes, strict=True)]
        outputs: Tensors = _Products.apply(  # type: ignore[no-untyped-call]
            self._bases, self._adapters, self._rank, len(inputs), *inputs, *shaped
        )
        return outputs


class _Products(torch.autograd.Function):
    """The products of some inputs with some layers; gradients are those of the inputs and of the adapters."""

    @staticmethod
    def forward(
        ctx: Any,
        bases: tuple[nn.Module, ...],
        adapters: tuple[int | None, ...],
        rank: int,
        count: int,
        *tensors: torch.Tensor,
    ) -> Tensors:
        inputs, weights = tensors[:count], tensors[count:]
        flat = [one.reshape(-1, one.shape[-1]) for one in inputs]
        widths = [one.shape[-1] for one in flat]
        down = _product(flat, weights[0], widths, None) if weights else None
        outputs = []
        for base, adapter in zip(bases, adapters, strict=True):
            output = _product(flat, full_weight(base, flat[0].dtype), widths, base.bias)  # type: ignore[arg-type]
            if adapter is not None and down is not None:
                output.addmm_(_of_adapter(down, adapter, rank), weights[1 + adapter].t())
            outputs.append(output.view(*inputs[0].shape[:-1], -1))
        ctx.save_for_backward(*weights, *([] if down is None else [down, *flat]))
        ctx.bases, ctx.adapters, ctx.rank = bases, adapters, rank
        ctx.shapes, ctx.widths, ctx.count = [one.shape for one in inputs], widths, len(weights)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        saved, count = ctx.saved_tensors, ctx.count
        weights = saved[:count]
        flat = [one.reshape(-1, one.shape[-1]) for one in gradients]
        wanted = ctx.needs_input_grad[4 : 4 + len(ctx.shapes)]
        inputs = _gradients_of_inputs(flat, ctx.bases, ctx.widths, wanted)
        learned: list[torch.Tensor] = []
        if weights:
            learned, through = _gradients_of_adapters(flat, ctx.adapters, ctx.rank, weights, *saved[count:])
            for one, part in zip(inputs, _columns(weights[0], ctx.widths), strict=True):
                if one is not None:
                    one.addmm_(through, part)
        shaped = [None if one is None else one.view(shape) for one, shape in zip(inputs, ctx.shapes, strict=True)]
        return None, None, None, None, *shaped, *learned


def full_weight(base: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The weight (out, in) of a layer, restored to ``dtype`` if it is kept in fewer bits."""
    if isinstance(base, EightBitLinear):
        return restore(base.weight, base.scale, dtype)
    weight: Any = base.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 # most runs do without

        restored: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return restored.to(dtype)
    same: torch.Tensor = weight.to(dtype)
    return same


def _product(
    flat: Sequence[torch.Tensor], weight: torch.Tensor, widths: Sequence[int], bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply rows (rows, in), in parts by features, by a weight (out, in)."""
    first, *rest = _columns(weight, widths)
    output = flat[0] @ first.t() if bias is None else torch.addmm(bias, flat[0], first.t())
    for part, columns in zip(flat[1:], rest, strict=True):
        output.addmm_(part, columns.t())
    return output


def _columns(weight: torch.Tensor, widths: Sequence[int]) -> Tensors:
    return (weight,) if len(widths) == 1 else torch.split(weight, list(widths), dim=1)


def _of_adapter(down: torch.Tensor, adapter: int, rank: int) -> torch.Tensor:
    return down[:, adapter * rank : (adapter + 1) * rank]


def _gradients_of_inputs(
    flat: Sequence[torch.Tensor], bases: Sequence[nn.Module], widths: Sequence[int], wanted: Sequence[bool]
) -> list[torch.Tensor | None]:
    """What comes through the layers' own weights, summed, for each part of the input that is wanted."""
    found: list[torch.Tensor | None] = [None] * len(widths)
    if not any(wanted):
        return found
    for gradient, base in zip(flat, bases, strict=True):
        columns = _columns(full_weight(base, gradient.dtype), widths)
        for part, (sum_, weight) in enumerate(zip(found, columns, strict=True)):
            if wanted[part]:
                found[part] = gradient @ weight if sum_ is None else sum_.addmm_(gradient, weight)
    return found


def _gradients_of_adapters(
    flat: Sequence[torch.Tensor],
    adapters: Sequence[int | None],
    rank: int,
    weights: Tensors,
    down: torch.Tensor,
    *inputs: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Those of A and of each B, and what goes through the Bs: (rows, rank of each, side by side)."""
    pairs = [(gradient, adapter) for gradient, adapter in zip(flat, adapters, strict=True) if adapter is not None]
    ups = [gradient.t() @ _of_adapter(down, adapter, rank) for gradient, adapter in pairs]
    through = [gradient @ weights[1 + adapter] for gradient, adapter in pairs]
    joined = through[0] if len(through) == 1 else torch.cat(through, dim=1)
    downs = [joined.t() @ one for one in inputs]
    return [downs[0] if len(downs) == 1 else torch.cat(downs, dim=1), *ups], joined
