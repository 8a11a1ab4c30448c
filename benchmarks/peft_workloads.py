"""Counts what a FLUX LoRA takes with peft's own layers; prints `training_presets/workloads_peft.toml`.

python -m benchmarks.peft_workloads > presets/training_presets/workloads_peft.toml

Other tools train so, and so did this trainer when it was measured on an H100 in November 2026: what was measured then
is held against these counts, not against those of layers that came later. In [FLUX_LORA_NF4] each linear layer of the
base gives back the type that it was given, as bitsandbytes' does: what comes after a norm in float32 stays in float32.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch.nn import functional

from benchmarks.workloads import (
    COUNTED_BLOCKS,
    FLUX,
    FLUX_BLOCKS,
    FLUX_TARGETS,
    RANKS,
    SIZES,
    Count,
    Law,
    build,
    flux_pass,
    flux_tokens,
    law,
    with_adapter,
)

NAMES = ("held", "traffic", "flops", "attention", "kernels")


class TypeKeeping(torch.nn.Linear):
    """A linear layer that gives back the type that it was given."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Compute in half precision, whatever comes."""
        return functional.linear(value, self.weight, self.bias).to(value.dtype)


def counted(size: int, targets: list[str], rank: int, *, checkpointed: bool, type_keeping: bool) -> Count:
    """One image of so many pixels a side, forth and back through all blocks."""

    def count(double: int, single: int) -> Count:
        module = build(FluxTransformer2DModel, FLUX | {"num_layers": double, "num_single_layers": single})
        with_adapter(module, targets, rank)
        if type_keeping:
            _keep_types(module)
        return flux_pass(module, size, train=True, checkpointed=checkpointed)

    double, single = COUNTED_BLOCKS
    counts = count(double, single), count(double + 1, single), count(double, single + 1)
    sums = {name: _of_all_blocks(name, counts) for name in NAMES}
    # A block more adds to the peak what it holds between the passes.
    return Count(activations=counts[0].activations + sums["held"] - counts[0].held, **sums)


def _of_all_blocks(name: str, counts: tuple[Count, Count, Count]) -> float:
    first, with_double, with_single = (float(getattr(one, name)) for one in counts)
    more = (blocks - few for blocks, few in zip(FLUX_BLOCKS, COUNTED_BLOCKS, strict=True))
    return first + sum(n * (other - first) for n, other in zip(more, (with_double, with_single), strict=True))


def _keep_types(module: Any) -> None:
    for name, layer in module.named_modules():
        # An adapter's own layers are none of the base's.
        if type(layer) is torch.nn.Linear and ".lora_" not in name:
            layer.__class__ = TypeKeeping


def all_laws() -> Iterator[tuple[str, Law]]:
    """Everything that is counted, by name."""
    cases = [("FLUX_LORA", targets, False) for targets in FLUX_TARGETS] + [("FLUX_LORA_NF4", "attention", True)]
    for kind, targets, type_keeping in cases:
        for how, on in (("checkpointed", True), ("stored", False)):
            counts = {
                (size, rank): counted(size, FLUX_TARGETS[targets], rank, checkpointed=on, type_keeping=type_keeping)
                for size in SIZES
                for rank in RANKS
            }
            yield f"{kind}.{targets}.{how}", law(flux_tokens, flux_tokens, counts)


def main() -> None:
    """Print the file."""
    warnings.simplefilter("ignore")
    for name, found in all_laws():
        print(f"[{name}]")
        for key, value in found.items():
            print(f"{key} = {value}")
        print(flush=True)


if __name__ == "__main__":
    main()
