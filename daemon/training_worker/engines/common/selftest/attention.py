"""A kernel of torch's attention, tried forth and back beside float32, at the shapes of the models that are trained."""

import argparse
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .child import RIGHT, UNAVAILABLE, Fault, Reporter, compare, end_with_parent, installed, load_fault

# Of each norm of a difference to float32, by the norm itself. bfloat16 has 8 bits, so one rounding is off by 0.2 % in
# the mean; kernels round the probabilities and the result, and measured errors of right ones are 0.2-0.6 %.
TOLERANCE = 0.02

# Bytes of one piece of the exact scores: on a small GPU there is little beside them.
PIECE = 2**28

# Messages of torch where a kernel does not take such inputs.
REFUSALS = ("no available kernel", "no viable backend")


class Case(NamedTuple):
    """Inputs of attention: tokens of the queries, and of keys and values; ``width`` is that of each head.

    ``packed`` queries, keys and values are slices of one tensor, and the gradient is one of wider rows, as behind a
    concatenation in FLUX's single blocks; ``causal`` ones have a mask, as captions do.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    packed: bool = False
    causal: bool = False

    def __str__(self) -> str:
        """Name it, for whoever reads a verdict."""
        also = ", packed" * self.packed + ", causal" * self.causal
        return f"{self.batch} x {self.heads} heads of {self.width}, {self.queries} to {self.keys} tokens{also}"


# FLUX has 24 heads of 128: captions alone, odd lengths, 512 and 1,024 pixels with 512 tokens of text. SDXL has 10 and
# 20 of 64, of images to themselves and to 77 tokens; CLIP 12. The third is that of the tiny model, at which cuDNN's
# kernel gave gradients that are no numbers on an H100.
CASES = (
    Case(1, 24, 80, 80, 128),
    Case(4, 24, 333, 333, 128),
    Case(4, 2, 528, 528, 16),
    Case(4, 2, 528, 528, 16, packed=True),
    Case(1, 24, 1536, 1536, 128),
    Case(1, 24, 1536, 1536, 128, packed=True),
    Case(4, 24, 1536, 1536, 128, packed=True),
    Case(1, 10, 4096, 4096, 64),
    Case(4, 10, 4096, 77, 64),
    Case(4, 20, 1024, 1024, 64),
    Case(1, 20, 1024, 77, 64),
    Case(4, 12, 77, 77, 64, causal=True),
    Case(1, 24, 4608, 4608, 128),
)
SMALL_CASES = (
    Case(1, 2, 80, 80, 16),
    Case(4, 2, 33, 33, 16, packed=True),
    Case(2, 2, 64, 7, 16),
    Case(1, 2, 17, 17, 16, causal=True),
)


def try_attention(kernel: str, device: str, fault: Fault) -> dict[str, Any]:
    """Try a kernel at all shapes, forth and back, up to the first at which it fails."""
    torch: Any = importlib.import_module("torch")
    name, errors, why = f"attention.{kernel}", [], "not for this device"
    for case in CASES if device == "cuda" else SMALL_CASES:
        try:
            found = _try_case(torch, kernel, case, device, lambda value: fault(name, value))
        except torch.cuda.OutOfMemoryError:
            # There may be little beside what others hold; the other shapes show as much.
            torch.cuda.empty_cache()
            why = "out of memory at every shape"
            continue
        except RuntimeError as error:
            if not any(refusal in str(error).lower() for refusal in REFUSALS):
                raise
            continue
        if found["verdict"] != RIGHT:
            return found
        errors.append(found["error"])
    return {"verdict": RIGHT, "error": max(errors)} if errors else {"verdict": UNAVAILABLE, "reason": why}


def _try_case(torch: Any, kernel: str, case: Case, device: str, fault: Callable[[Any], Any]) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)

    def draw(length: int) -> Any:
        shape = (case.batch, length, case.heads, case.width)
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    inputs, gradient = [draw(case.queries), draw(case.keys), draw(case.keys)], draw(case.queries)
    mask = torch.full((case.queries, case.keys), -torch.inf, device=device).triu(1) if case.causal else None
    given = _attend(torch, kernel, case, inputs, gradient, mask, fault)
    return compare(given, _exact(torch, inputs, gradient, mask), TOLERANCE, str(case))


def _attend(  # noqa: PLR0913, PLR0917 - all that attention has
    torch: Any, kernel: str, case: Case, inputs: list[Any], gradient: Any, mask: Any, fault: Callable[[Any], Any]
) -> dict[str, Any]:
    """Compute with a kernel, from tensors (batch, length, heads, width) as layers make them: the heads are strided."""
    attention: Any = importlib.import_module("torch.nn.attention")
    leaves = [torch.stack(inputs, 2)] if case.packed else [one.clone() for one in inputs]
    if case.packed:
        # Its rows lie as far apart as those of what it was put together with: not every kernel looks.
        gradient = torch.cat([gradient, torch.zeros_like(gradient)], 2)[:, :, : case.heads]
    for leaf in leaves:
        leaf.requires_grad_()
    parts = leaves[0].unbind(2) if case.packed else leaves
    query, key, value = (part.permute(0, 2, 1, 3) for part in parts)
    with attention.sdpa_kernel([getattr(attention.SDPBackend, kernel.upper())]):
        bias = None if mask is None else mask.to(query.dtype)
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output = fault(output.permute(0, 2, 1, 3))
        gradients = torch.autograd.grad(output, leaves, gradient)
    found = gradients[0].unbind(2) if case.packed else gradients
    return dict(zip(("output", "query gradient", "key gradient", "value gradient"), (output, *found), strict=True))


def _exact(torch: Any, inputs: list[Any], gradient: Any, mask: Any) -> dict[str, Any]:
    """The same in float32, by the formulas, a few heads at a time."""
    flat = [one.permute(0, 2, 1, 3).flatten(0, 1).float() for one in (*inputs, gradient)]
    heads = max(1, PIECE // (4 * inputs[0].shape[1] * inputs[1].shape[1]))
    pieces = [
        _exact_heads(torch, *(one[at : at + heads] for one in flat), mask=mask) for at in _steps(len(flat[0]), heads)
    ]
    shape = (inputs[0].shape[0], -1)
    whole = [torch.cat(parts).unflatten(0, shape).permute(0, 2, 1, 3) for parts in zip(*pieces, strict=True)]
    return dict(zip(("output", "query gradient", "key gradient", "value gradient"), whole, strict=True))


def _steps(count: int, size: int) -> Iterator[int]:
    return iter(range(0, count, size))


def _exact_heads(torch: Any, *tensors: Any, mask: Any) -> tuple[Any, ...]:
    query, key, value, gradient = tensors
    scale = query.shape[-1] ** -0.5
    scores = query @ key.mT * scale
    chances = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    output = chances @ value
    inner = gradient @ value.mT - (gradient * output).sum(dim=-1, keepdim=True)
    slope = chances * inner * scale
    return output, slope @ key, slope.mT @ query, chances.mT @ gradient


def main() -> int:
    """Try the kernel that is named by the arguments."""
    parser = argparse.ArgumentParser(description="Try a kernel of torch's attention.")
    parser.add_argument("--versions", action="store_true")
    parser.add_argument("--kernel")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--faults")
    arguments = parser.parse_args()
    end_with_parent()
    reporter = Reporter()
    if arguments.versions:
        reporter.write(versions=installed())
        return 0
    fault = load_fault(arguments.faults)
    if not reporter.ready(arguments.device):
        return 0
    kernel = arguments.kernel
    return reporter.run({f"attention.{kernel}": lambda: try_attention(kernel, arguments.device, fault)})
