"""Quantization: the base model's linear weights in fewer bits. They cannot learn any more, only adapters beside them.

In 4 bits by the layers of bitsandbytes; in 8 bits by a layer of our own. Each takes over one layer with its full
weights, so that a model can be quantized while it is loaded, and never is in memory whole.

The 8-bit layers of bitsandbytes are not used: they keep their inputs for the backward pass where checkpointing does not
see them, so that those of all blocks are held at once, and on a GPU they compute in float16, which FLUX overflows.
"""

from typing import Any

import torch

from training_schemas.spec import Quantization
from training_worker.engines.diffusers.models.restoring import restore

# The modules whose linear layers are quantized: FLUX's blocks, and the attention of SDXL's. What lies outside of them
# is little, and closest to the model's inputs and outputs.
BLOCKS = {"transformer_blocks", "single_transformer_blocks", "attentions"}

# The format is that of Micikevicius et al. 2022 (arXiv:2209.05433): 4 bits of exponent, 3 of mantissa, no infinity.
FP8 = torch.float8_e4m3fn
# The largest number of a row is this one. Of whole numbers -128 is left out, so that they are the same on both sides.
LARGEST = {FP8: torch.finfo(FP8).max, torch.int8: 127.0}
EIGHT_BITS = {Quantization.FP8: FP8, Quantization.INT8: torch.int8}


class EightBitLinear(torch.nn.Linear):
    """A linear layer whose weight (out, in) is kept as 8-bit numbers, with a float32 scale (out, 1) for each output.

    A weight is ``number * scale``, and the scale is such that the row's largest has the format's largest value: 448 of
    floats, 127 of whole numbers. It is multiplied out for each pass, in the type of the input or of autocast; neither
    that nor the input is kept for the backward pass.
    """

    scale: torch.Tensor

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Take a layer's weight over, in ``dtype``: one of `LARGEST`."""
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        weight = linear.weight.detach().to(device)
        # The type that peft makes adapters in: of the weight's own they would begin with next to no digits.
        self.compute_dtype = weight.dtype
        low, high = weight.aminmax(dim=1, keepdim=True)
        scale = torch.maximum(-low, high).float() / LARGEST[dtype]
        scale = torch.where(scale > 0, scale, 1.0)
        numbers = weight / scale
        if not dtype.is_floating_point:
            numbers.round_()
        self.weight = torch.nn.Parameter(numbers.to(dtype), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", scale)
        self.to(device)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 # the name of torch
        """Multiply inputs (..., in) to outputs (..., out)."""
        outputs: torch.Tensor = _EightBitProduct.apply(_cast(input), self.weight, self.scale, self.bias)  # type: ignore[no-untyped-call]
        return outputs

    def full_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Multiply the weight out."""
        return restore(self.weight, self.scale, dtype)


class _EightBitProduct(torch.autograd.Function):
    """The product of inputs and a frozen weight; the gradient is that of the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return torch.nn.functional.linear(inputs, restore(weight, scale, inputs.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ restore(weight, scale, gradient.dtype), None, None, None


def is_quantized(name: str, layer: torch.nn.Module) -> bool:
    """Whether a layer of a denoiser, by its full name, is one of those that are quantized."""
    return type(layer) is torch.nn.Linear and not BLOCKS.isdisjoint(name.split("."))


def quantized(linear: torch.nn.Linear, how: Quantization, device: torch.device) -> torch.nn.Module:
    """Make the layer that stands for a linear layer, on the device; the given one is to be on the CPU.

    bitsandbytes quantizes on the way from there.
    """
    layer = _four_bits(linear, device) if how is Quantization.NF4 else EightBitLinear(linear, EIGHT_BITS[how], device)
    return layer.requires_grad_(requires_grad=False)


def mark(model: torch.nn.Module, how: Quantization) -> None:
    """Mark the layers for peft, by the flag that it looks for when it puts adapters beside them."""
    model.is_loaded_in_4bit = how is Quantization.NF4  # type: ignore[assignment]


def _four_bits(linear: torch.nn.Linear, device: torch.device) -> torch.nn.Module:
    import bitsandbytes  # noqa: PLC0415 - it takes a second, and most runs do without

    weight = linear.weight.data
    layer: torch.nn.Module = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=weight.dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=layer
    )
    layer.bias = linear.bias
    # On some CPUs it would pack its weights again for each pass without gradients, in a way that rows of less than a
    # block do not survive.
    layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    # It gives outputs in the type of its inputs, and autocast's norms are float32: so would be all that follows.
    layer.register_forward_pre_hook(lambda _, inputs: (_cast(inputs[0]),))
    return layer.to(device)


def _cast(inputs: torch.Tensor) -> torch.Tensor:
    """Cast to the type of autocast, where it is on."""
    device = inputs.device.type
    return inputs.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else inputs
