"""A kernel of torch's attention, tried on this machine: ``PYTHON attention_trial.py --kernel NAME --device DEVICE``.

What it finds it says in JSON lines, as `Reporter` has them; all that libraries print goes to standard error. It is run
as a child, since a broken kernel may take its process along or never end. Any engine's interpreter can run it: it needs
Python 3.10, the standard library and torch. With ``--versions`` it says what is installed, and imports none of it.
"""

import argparse
import ctypes
import importlib
import importlib.metadata
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

RIGHT, WRONG, NOT_FINITE, CRASHED, UNAVAILABLE = "right", "wrong", "notFinite", "crashed", "unavailable"

# Of each norm of a difference to float32, by the norm itself. bfloat16 has 8 bits, so one rounding is off by 0.2 % in
# the mean; kernels round the probabilities and the result, and measured errors of right ones are 0.2-0.6 %.
TOLERANCE = 0.02

# Bytes of one piece of the exact scores: on a small card there is little beside them.
PIECE = 2**28

# What torch says where a kernel does not take such inputs.
REFUSALS = ("no available kernel", "no viable backend")

# On whose versions a verdict depends. cuDNN is a distribution for each CUDA.
DISTRIBUTIONS = ("torch", "bitsandbytes", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

PR_SET_PDEATHSIG = 1

Trial = Callable[[], dict[str, Any]]
Fault = Callable[[str, Any], Any]


class Case(NamedTuple):
    """Inputs of attention: tokens of the queries, and of keys and values; ``width`` is that of each head.

    ``packed`` queries, keys and values are slices of one tensor; ``causal`` ones have a mask, as captions do.
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
# 20 of 64, of pictures to themselves and to 77 tokens; CLIP 12. The third is that of the tiny model, at which cuDNN's
# kernel gave gradients that are no numbers on an H100.
CASES = (
    Case(1, 24, 80, 80, 128),
    Case(4, 24, 333, 333, 128),
    Case(4, 2, 528, 528, 16),
    Case(1, 24, 1536, 1536, 128),
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


class Reporter:
    """Says what a child finds, a JSON object a line: ``ready`` once, then ``trial`` and ``result`` of each, or a rate.

    From its making on, standard output is standard error for everybody else.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, **fields: Any) -> None:
        """Write a line at once: what comes after may end the process."""
        print(json.dumps(fields), file=self._out, flush=True)

    def ready(self, device: str) -> bool:
        """Load torch and say what it runs on. False if there is no such device, which is said in its place."""
        torch: Any = importlib.import_module("torch")
        if device != "cuda":
            self.say(ready={"gpu": device, "memoryMib": 0})
            return True
        if not torch.cuda.is_available():
            self.say(missing="torch finds no card")
            return False
        memory = torch.cuda.get_device_properties(0).total_memory // 2**20
        self.say(ready={"gpu": torch.cuda.get_device_name(0), "memoryMib": memory})
        return True

    def run(self, trials: Mapping[str, Trial]) -> int:
        """Make all trials, up to the first that crashes: of what the process can do then nothing is known."""
        for name, trial in trials.items():
            self.say(trial=name)
            result = _judged(trial)
            self.say(result={"name": name, **result})
            if result["verdict"] == CRASHED:
                return 1
        return 0


def _judged(trial: Trial) -> dict[str, Any]:
    torch: Any = importlib.import_module("torch")
    try:
        return trial()
    except torch.cuda.OutOfMemoryError as error:
        return {"verdict": UNAVAILABLE, "reason": f"out of memory: {error}"[:300]}
    except Exception as error:  # noqa: BLE001 - a broken kernel may raise anything
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        return {"verdict": CRASHED, "reason": f"{type(error).__name__}: {first}"[:300]}


def end_with_parent() -> None:
    """Be killed when the parent ends: a child that hangs would keep the card."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def load_fault(name: str | None) -> Fault:
    """The function ``module:function`` that breaks results on purpose, for tests; without a name, one that does not."""
    if name is None:
        return lambda _, value: value
    module, _, function = name.partition(":")
    fault: Fault = getattr(importlib.import_module(module), function)
    return fault


def installed() -> dict[str, str]:
    """The versions of what is installed of `DISTRIBUTIONS`."""
    found = {}
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def compare(given: Mapping[str, Any], truth: Mapping[str, Any], tolerance: float, where: str) -> dict[str, Any]:
    """Judge tensors by those in float32 of the same names; the error is the largest one."""
    for name, tensor in given.items():
        if not bool(tensor.isfinite().all()):
            return {"verdict": NOT_FINITE, "reason": f"{name} of {where}: not finite"}
    errors = {name: distance(tensor, truth[name]) for name, tensor in given.items()}
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] <= tolerance:
        return {"verdict": RIGHT, "error": errors[worst]}
    return {"verdict": WRONG, "reason": f"{worst} of {where}: off by {errors[worst]:.1%}"}


def distance(tensor: Any, truth: Any) -> float:
    """The norm of the difference by the norm of the truth."""
    return float((tensor.detach().float() - truth).norm() / truth.norm().clamp(min=1e-30))


def try_attention(kernel: str, device: str, fault: Fault) -> dict[str, Any]:
    """Try a kernel at all shapes, forth and back, up to the first at which it fails."""
    torch: Any = importlib.import_module("torch")
    name, errors, why = f"attention.{kernel}", [], "not for this device"
    for case in CASES if device == "cuda" else SMALL_CASES:
        try:
            found = _try_case(torch, kernel, case, device, lambda value: fault(name, value))
        except torch.cuda.OutOfMemoryError:
            # There may be little beside what others hold; the other shapes tell as much.
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
    # Python puts this file's folder first, whose modules must not stand for the interpreter's.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    parser = argparse.ArgumentParser(description="Try a kernel of torch's attention.")
    parser.add_argument("--versions", action="store_true")
    parser.add_argument("--kernel")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--faults")
    arguments = parser.parse_args()
    end_with_parent()
    reporter = Reporter()
    if arguments.versions:
        reporter.say(versions=installed())
        return 0
    fault = load_fault(arguments.faults)
    if not reporter.ready(arguments.device):
        return 0
    kernel = arguments.kernel
    return reporter.run({f"attention.{kernel}": lambda: try_attention(kernel, arguments.device, fault)})


if __name__ == "__main__":
    sys.exit(main())
