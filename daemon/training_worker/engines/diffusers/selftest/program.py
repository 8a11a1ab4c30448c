"""The program's two sides: the parent, which judges, and the children, which try."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from training_schemas.selftest import GpuRates, KernelResult, SelfTest, Verdict, key_of
from training_schemas.spec import AttentionKernel
from training_worker.engines.common.selftest.child import Reporter, Trial, end_with_parent, load_fault
from training_worker.engines.diffusers.selftest.children import Child
from training_worker.engines.diffusers.selftest.trials import ATTENTION, Plan, measured, try_all
from training_worker.version import __version__

PREFIX = "attention."
# The same kernels within whole blocks, as they are trained.
IN_BLOCKS = "block."


def self_test(plan: Plan, key: str | None = None) -> SelfTest:
    """Test a GPU: every kernel first, then how fast it is with the right ones.

    Raises:
        OSError: The interpreter cannot be started.
    """
    began = time.monotonic()
    versions = versions_of(plan.python)
    found = try_all(plan)
    right = right_kernels(found.kernels.values())
    rates = {} if plan.attention_only or not right else measured(plan, right)
    seconds: dict[str, float] = rates.pop("attention", {})
    return SelfTest(
        key=key or key_of(found.gpu, versions),
        gpu=found.gpu,
        memory_mib=found.memory_mib,
        versions=versions,
        kernels=[_timed(kernel, seconds) for kernel in found.kernels.values()],
        attention=by_speed(right, seconds),
        rates=_rates(rates),
        seconds=time.monotonic() - began,
    )


def versions_of(python: str) -> dict[str, str]:
    """On which versions an interpreter's verdicts depend. Raises `OSError` if it cannot be started."""
    lines = list(Child([python, str(ATTENTION), "--versions"]))
    found = next((line.versions for line in lines if line.versions is not None), {})
    return {**found, "trainer": __version__}


def right_kernels(kernels: Iterable[KernelResult]) -> tuple[AttentionKernel, ...]:
    """The kernels of attention that were right, by themselves and in blocks, in the order of their list."""
    found = {one.name: one.verdict for one in kernels}
    good = {Verdict.RIGHT, Verdict.UNAVAILABLE}
    return tuple(
        kernel
        for kernel in AttentionKernel
        if found.get(f"{PREFIX}{kernel}") is Verdict.RIGHT and found.get(f"{IN_BLOCKS}{kernel}", Verdict.RIGHT) in good
    )


def by_speed(kernels: Iterable[AttentionKernel], seconds: Mapping[str, float]) -> tuple[AttentionKernel, ...]:
    """The fastest first; those that were not timed last."""
    return tuple(sorted(kernels, key=lambda kernel: seconds.get(kernel, float("inf"))))


def _timed(kernel: KernelResult, seconds: Mapping[str, float]) -> KernelResult:
    taken = seconds.get(kernel.name.removeprefix(PREFIX)) if kernel.name.startswith(PREFIX) else None
    return msgspec.structs.replace(kernel, seconds=taken)


def _rates(rates: Mapping[str, Any]) -> GpuRates | None:
    """None if the child did not get far enough."""
    try:
        return msgspec.convert(rates, GpuRates)
    except msgspec.ValidationError:
        return None


def run_child(
    kind: str, device: str, only: Sequence[str], kernels: Sequence[AttentionKernel], faults: str | None
) -> int:
    """Make the trials of one kind, all or some, or measure rates; the exit status."""
    end_with_parent()
    reporter = Reporter()
    # Libraries are loaded before the child reports that it is ready: a cold disk is no kernel that hangs.
    if kind == "rates":
        from training_worker.engines.diffusers.selftest.rates import Rates  # noqa: PLC0415 - torch

        if reporter.ready(device):
            for rate in Rates(device, kernels).measure():
                reporter.write(rate=rate)
        return 0
    trials = _trials(kind, device, faults)
    if not reporter.ready(device):
        return 0
    return reporter.run({name: trial for name, trial in trials.items() if not only or name in only})


def _trials(kind: str, device: str, faults: str | None) -> dict[str, Trial]:
    # Each imports torch, and no more than it needs.
    fault = load_fault(faults)
    if kind == "optimizers":
        from training_worker.engines.diffusers.selftest.optimizers import optimizer_trials  # noqa: PLC0415

        return optimizer_trials(device, fault)
    from training_worker.engines.diffusers.selftest.layers import (  # noqa: PLC0415
        block_trials,
        compiled_trials,
        layer_trials,
    )

    return {"compiled": compiled_trials, "blocks": block_trials}.get(kind, layer_trials)(device, fault)
