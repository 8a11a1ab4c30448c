"""What a GPU's self-test found: which kernels are right on it, and how fast it is. Kept per GPU and versions."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from training_schemas.base import StrictWire
from training_schemas.spec import AttentionKernel, Quantization

Rate = Annotated[float, Meta(gt=0)]


class Verdict(StrEnum):
    """How a kernel did."""

    RIGHT = "right"
    WRONG = "wrong"
    """Its numbers are not those of float32, within the rounding of its type."""
    NOT_FINITE = "notFinite"
    CRASHED = "crashed"
    """It took its process along, or lost the GPU's context."""
    HUNG = "hung"
    UNAVAILABLE = "unavailable"
    """This GPU or this torch has none."""


class KernelResult(StrictWire, frozen=True, kw_only=True):
    """One kernel in one engine's interpreter: ``name`` as in ``attention.flash_attention`` or ``base.nf4``.

    ``error`` is the largest relative error over all shapes, forward and backward; ``seconds`` what one pass forth and
    back takes at the largest shape; None where it gave neither.
    """

    name: str
    verdict: Verdict
    reason: str | None = None
    error: float | None = None
    seconds: float | None = None


class GpuRates(StrictWire, frozen=True, kw_only=True):
    """How fast a GPU is at what a step consists of: the constants of the model of time.

    Args:
        product_flops: FLOP/s of bf16 matrix products.
        attention_forward_flops: FLOP/s of attention in the forward pass, by the fastest right kernel.
        attention_backward_flops: The same in the backward pass.
        bytes_per_second: Bytes read and written a second by elementwise operations.
        launch_seconds: Seconds that an operation of torch takes at least, Python included.
        restored_per_second: Weights a second that are restored from a quantized base, by its kind.
        optimizer_seconds: Seconds a tensor of an 8-bit AdamW's step.
    """

    product_flops: Rate
    attention_forward_flops: Rate
    attention_backward_flops: Rate
    bytes_per_second: Rate
    launch_seconds: Rate
    restored_per_second: dict[Quantization, Rate] = {}
    optimizer_seconds: Rate = 90e-6


class SelfTest(StrictWire, frozen=True, kw_only=True):
    """All that a self-test found on one GPU, in one engine's interpreter.

    ``key`` names what it holds for: the GPU, its driver, and the versions of torch, bitsandbytes and the trainer.
    ``attention`` are the kernels that may be used, the fastest first; empty if none is right.
    """

    key: str
    gpu: str
    memory_mib: int
    versions: dict[str, str]
    kernels: list[KernelResult]
    attention: tuple[AttentionKernel, ...]
    rates: GpuRates | None = None
    seconds: float = 0.0


def key_of(gpu: str, versions: Mapping[str, str]) -> str:
    """What a self-test holds for, in a line: a GPU by its UUID or name, and the versions that verdicts depend on."""
    return "; ".join([gpu, *(f"{name} {versions[name]}" for name in sorted(versions))])
