"""A child that tries kernels: what it reports, how it judges, and what it does with one that fails.

It needs Python 3.10, the standard library and torch: any engine's interpreter can run it.
"""

import ctypes
import importlib
import importlib.metadata
import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

RIGHT, WRONG, NOT_FINITE, CRASHED, UNAVAILABLE = "right", "wrong", "notFinite", "crashed", "unavailable"

# On whose versions a verdict depends. cuDNN is a distribution for each CUDA.
DISTRIBUTIONS = ("torch", "bitsandbytes", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

PR_SET_PDEATHSIG = 1

Trial = Callable[[], dict[str, Any]]
Fault = Callable[[str, Any], Any]


class Reporter:
    """Writes what a child finds, JSON object a line: ``ready``, then ``trial`` and ``result`` of each, or a rate.

    From its making on, standard output is standard error for everybody else.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def write(self, **fields: Any) -> None:
        """Write a line at once: what comes after may end the process."""
        print(json.dumps(fields), file=self._out, flush=True)

    def ready(self, device: str) -> bool:
        """Load torch and report what it runs on. False if there is no such device, which is reported instead."""
        torch: Any = importlib.import_module("torch")
        if device != "cuda":
            self.write(ready={"gpu": device, "memoryMib": 0})
            return True
        if not torch.cuda.is_available():
            self.write(missing="torch finds no GPU")
            return False
        memory = torch.cuda.get_device_properties(0).total_memory // 2**20
        self.write(ready={"gpu": torch.cuda.get_device_name(0), "memoryMib": memory})
        return True

    def run(self, trials: Mapping[str, Trial]) -> int:
        """Make all trials, up to the first that crashes: of what the process can do then nothing is known."""
        for name, trial in trials.items():
            self.write(trial=name)
            result = _judged(trial)
            self.write(result={"name": name, **result})
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
    """Be killed when the parent ends: a child that hangs would keep the GPU."""
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
