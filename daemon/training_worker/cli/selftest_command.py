"""selftest: which kernels are right on this host's GPUs, and how fast they are, in a table or as JSON."""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training_schemas.jobs import EngineName
from training_schemas.selftest import SelfTest, Verdict
from training_worker.cli.terminal import printable
from training_worker.gpu.devices import GpuDevice, worker_gpus
from training_worker.gpu.nvml import SEPARATOR
from training_worker.runs.environment import trainer_environment
from training_worker.selftest.program import SelfTestError, SelfTestProgram, programs
from training_worker.settings import load_settings

STYLES = {Verdict.RIGHT: "green", Verdict.UNAVAILABLE: "dim"}


class Tested(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU's self-test in an engine's interpreter, or why there is none."""

    gpu: str
    engine: EngineName
    test: SelfTest | None = None
    error: str | None = None

    @property
    def fit(self) -> bool:
        """Whether the GPU can train by it."""
        return self.test is not None and bool(self.test.attention)


def run_self_tests(config: Path | None, arguments: Sequence[str], *, as_json: bool) -> int:
    """Test each GPU with each engine, one after the other; 1 if any has no right kernel, or there is nothing to test.

    Nothing is remembered of it. Raises `SettingsError`, `NoGpuError`.
    """
    settings = load_settings(config, os.environ)
    tests = programs(settings, arguments)
    gpus = [gpu for device in worker_gpus(settings) for gpu in _single(device)]
    with Console(stderr=True).status("trying kernels, which takes a minute for each GPU"):
        found = [asyncio.run(_test(gpu, name, tests)) for gpu in gpus for name in tests]
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        for one in found:
            _print(one)
    if not found:
        print("training-worker: no engine of the settings runs our own trainer", file=sys.stderr)
    return 0 if found and all(one.fit for one in found) else 1


def _single(device: GpuDevice) -> Iterator[GpuDevice]:
    return (msgspec.structs.replace(device, uuid=uuid, count=1) for uuid in device.uuid.split(SEPARATOR))


async def _test(gpu: GpuDevice, engine: EngineName, tests: dict[EngineName, SelfTestProgram]) -> Tested:
    try:
        test = await tests[engine].test(gpu.uuid, trainer_environment(gpu))
    except SelfTestError as error:
        return Tested(gpu=gpu.uuid, engine=engine, error=str(error))
    return Tested(gpu=gpu.uuid, engine=engine, test=test)


def _print(tested: Tested) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(f"{tested.gpu}, {tested.engine}", style="bold"))
    if tested.test is None:
        console.print(Text(printable(tested.error or ""), style="red"))
        return
    console.print(_kernels(tested.test))
    used = ", ".join(tested.test.attention) or "none is right"
    console.print(f"attention, the fastest first: {used}; {tested.test.seconds:.0f} s")
    if tested.test.rates is not None:
        for name, rate in msgspec.to_builtins(tested.test.rates).items():
            console.print(f"  {name}: {_figure(rate)}")


def _kernels(test: SelfTest) -> Table:
    table = Table("kernel", "verdict", "error", "seconds", "why", box=box.SIMPLE)
    for kernel in test.kernels:
        error = "-" if kernel.error is None else f"{kernel.error:.2%}"
        seconds = "-" if kernel.seconds is None else f"{kernel.seconds:.2g}"
        verdict = Text(kernel.verdict, style=STYLES.get(kernel.verdict, "red"))
        table.add_row(kernel.name, verdict, error, seconds, Text(printable(kernel.reason or ""), overflow="fold"))
    return table


def _figure(rate: float | dict[str, float]) -> str:
    if isinstance(rate, dict):
        return ", ".join(f"{name} {value:.3g}" for name, value in rate.items())
    return f"{rate:.3g}"
