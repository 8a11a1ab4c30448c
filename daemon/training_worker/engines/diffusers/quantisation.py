"""Quantisation: the base model's weights in fewer bits, by the layers of bitsandbytes.

diffusers would do it while it loads, but only where there is a GPU. Here the layers are replaced one after the other,
each on its way to the device: its full weights are there once at a time.
"""

from collections.abc import Callable

import torch

from training_schemas.spec import Quantization

# What lies outside of the blocks is little, and closest to what the model sees and says.
BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def quantise(transformer: torch.nn.Module, how: Quantization, device: torch.device) -> None:
    """Replace the linear layers of all blocks, and move them to the device. They cannot learn any more.

    The model says so by the flags that peft looks for when it puts adapters beside them.
    """
    make = {Quantization.NF4: _four_bits, Quantization.INT8: _eight_bits}[how]
    for block in BLOCKS:
        _replace(getattr(transformer, block), make, device)


def mark(transformer: torch.nn.Module, how: Quantization) -> None:
    """Tell peft what the layers are."""
    transformer.is_loaded_in_4bit = how is Quantization.NF4  # type: ignore[assignment]
    transformer.is_loaded_in_8bit = how is Quantization.INT8  # type: ignore[assignment]


def _replace(module: torch.nn.Module, make: Callable[[torch.nn.Linear], torch.nn.Module], device: torch.device) -> None:
    for name, child in module.named_children():
        if type(child) is torch.nn.Linear:
            setattr(module, name, make(child).to(device).requires_grad_(requires_grad=False))
        else:
            _replace(child, make, device)


def _four_bits(linear: torch.nn.Linear) -> torch.nn.Module:
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
    # On some CPUs it would pack its weights anew for each pass without gradients, in a way that rows of less than a
    # block do not survive.
    layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return layer


def _eight_bits(linear: torch.nn.Linear) -> torch.nn.Module:
    import bitsandbytes  # noqa: PLC0415

    layer: torch.nn.Module = bitsandbytes.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False, device="meta"
    )
    layer.weight = bitsandbytes.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.bias = linear.bias
    return layer
