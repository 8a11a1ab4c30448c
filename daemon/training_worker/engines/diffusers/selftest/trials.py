"""What is tried: groups of trials, each group in a child, and what comes of children that crash or hang."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from training_schemas.selftest import KernelResult, Verdict
from training_schemas.spec import AttentionKernel, OptimizerName, Quantization
from training_worker.engines.diffusers.selftest.children import SILENCE_LIMIT, Child

PROGRAM = "training_worker.engines.diffusers.selftest"
# Run by its place: the interpreter may have nothing of ours.
ATTENTION = Path(__file__).parents[2] / "common" / "selftest"

# Children at a time: each loads torch, and holds some GiB of the GPU.
AT_ONCE = 3
# Compiling a block takes minutes.
COMPILE_LIMIT = 600.0

LAYERS = tuple(f"base.{how}" for how in Quantization)
BLOCKS = tuple(f"block.{kernel}" for kernel in AttentionKernel)
COMPILED = ("compiled.none",)
OPTIMIZERS = tuple(f"optimizer.{name}" for name in OptimizerName)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to test: on which device, by which interpreter, all or attention alone.

    ``faults`` break results on purpose, and ``silence`` is how many seconds a child may write nothing.
    """

    device: str
    python: str = sys.executable
    attention_only: bool = False
    compiled: bool = False
    faults: str | None = None
    silence: float = SILENCE_LIMIT


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Trials by their names, and the command of the child that makes them; ``names`` are added to it if it takes any.

    ``silence`` is how many seconds each may take.
    """

    names: tuple[str, ...]
    command: tuple[str, ...]
    silence: float
    takes_names: bool = True

    def command_for(self, names: Sequence[str]) -> list[str]:
        """The command that makes these trials of the group."""
        return [*self.command, *(argument for name in names for argument in ("--only", name) if self.takes_names)]


class Found(msgspec.Struct, kw_only=True):
    """What has been found so far: of the device, by the first child that saw it, and of each kernel."""

    gpu: str = ""
    memory_mib: int = 0
    kernels: dict[str, KernelResult] = {}


def groups(plan: Plan) -> list[Group]:
    """All that is to be tried, what takes longest first."""
    ours = (plan.python, "-m", PROGRAM, *_common(plan), "--child")
    attention = [_attention(kernel, plan) for kernel in AttentionKernel]
    if plan.attention_only:
        return attention
    more = [Group(names=COMPILED, command=(*ours, "compiled"), silence=COMPILE_LIMIT)] if plan.compiled else []
    layers = Group(names=LAYERS, command=(*ours, "layers"), silence=plan.silence)
    blocks = Group(names=BLOCKS, command=(*ours, "blocks"), silence=plan.silence)
    optimizers = Group(names=OPTIMIZERS, command=(*ours, "optimizers"), silence=plan.silence)
    return [*more, layers, blocks, *attention, optimizers]


def _common(plan: Plan) -> list[str]:
    return ["--device", plan.device, *(["--faults", plan.faults] if plan.faults else [])]


def _attention(kernel: AttentionKernel, plan: Plan) -> Group:
    command = (plan.python, str(ATTENTION), "--kernel", str(kernel), *_common(plan))
    return Group(names=(f"attention.{kernel}",), command=command, silence=plan.silence, takes_names=False)


def try_all(plan: Plan) -> Found:
    """Make all trials, a few children at a time. Raises `OSError` if the interpreter cannot be started."""
    found = Found()
    todo = groups(plan)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for one in pool.map(_try_group, todo):
            found.gpu = found.gpu or one.gpu
            found.memory_mib = found.memory_mib or one.memory_mib
            found.kernels |= one.kernels
    return found


def _try_group(group: Group) -> Found:
    """Make a group's trials; after one that took its child along, go on with the next in another child."""
    found = Found()
    while left := [name for name in group.names if name not in found.kernels]:
        child = Child(group.command_for(left), group.silence)
        begun = None
        for line in child:
            begun = line.trial or begun
            _take_in(line.ready, line.missing, line.result, left, found)
        if not found.kernels.keys() & set(left):
            # What it was about to try when it ended; or it ended before that, and no other child would get further.
            names = left if begun is None else [begun]
            found.kernels |= {name: _lost(name, child) for name in names}
        elif begun is not None and begun not in found.kernels:
            found.kernels[begun] = _lost(begun, child)
    return found


def _take_in(
    ready: dict[str, Any] | None,
    missing: str | None,
    result: dict[str, Any] | None,
    names: Sequence[str],
    found: Found,
) -> None:
    if ready is not None:
        found.gpu, found.memory_mib = str(ready["gpu"]), int(ready["memoryMib"])
    if missing is not None:
        lost = (KernelResult(name=name, verdict=Verdict.UNAVAILABLE, reason=missing) for name in names)
        found.kernels |= {one.name: one for one in lost}
    if result is not None:
        found.kernels[str(result["name"])] = msgspec.convert(result, KernelResult)


def _lost(name: str, child: Child) -> KernelResult:
    verdict = Verdict.HUNG if child.end.hung else Verdict.CRASHED
    return KernelResult(name=name, verdict=verdict, reason=child.end.reason)


def measured(plan: Plan, kernels: Sequence[AttentionKernel]) -> dict[str, Any]:
    """The rates of a device on which these kernels are right, as far as its child got."""
    names = [argument for kernel in kernels for argument in ("--kernel", str(kernel))]
    command = [plan.python, "-m", PROGRAM, *_common(plan), "--child", "rates", *names]
    return {name: value for rate in _rates(Child(command, plan.silence)) for name, value in rate.items()}


def _rates(child: Child) -> Iterator[dict[str, Any]]:
    return (line.rate for line in child if line.rate is not None)
