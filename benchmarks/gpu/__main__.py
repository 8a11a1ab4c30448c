"""See the package."""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.gpu.cases import Case, Figures, Found, flux_cases, sdxl_cases, tiny_cases
from benchmarks.gpu.product import play_all
from benchmarks.gpu.report import LEGEND, Report, product_table, steps_table
from training_schemas.jobs import ModelFamily

PARTS = ("selftest", "steps", "product")
# Of the time, what each part may end at; the last one has the rest.
SHARES = {"selftest": 0.15, "steps": 0.45, "product": 1.0}
TMPFS = Path("/dev/shm")  # noqa: S108 - for weights that are read as from a warm page cache
TINY = Found(name="CPU", memory_mib=0, free_mib=0, torch="")


class NoFiguresError(Exception):
    """A process has ended without figures; the message has the reason."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts within their time, print their tables, and write the report."""
    options = _parse(arguments)
    try:
        found = TINY if options.tiny else find_gpu()
    except NoFiguresError as failure:
        print(f"benchmarks.gpu: cannot look for a CUDA GPU: {failure}", file=sys.stderr)
        return 1
    if found is None and options.if_present:
        print("benchmarks.gpu: skipped, there is no CUDA GPU")
        return 0
    if found is None:
        print("benchmarks.gpu: needs a CUDA GPU, and a torch built for CUDA; torch sees none", file=sys.stderr)
        return 1
    print(f"{found.name}, {found.memory_mib} MiB, of which {found.free_mib} are free; torch {found.torch}", flush=True)
    report = Report(gpu=found.name, memory_mib=found.memory_mib, torch=found.torch)
    began = time.monotonic()
    for part in options.parts:
        part_began = time.monotonic()
        run_part(part, report, began + 60 * options.minutes * SHARES[part], tiny=options.tiny)
        report.seconds[part] = time.monotonic() - part_began
        options.output.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    print(f"report: {options.output}; seconds: {report.seconds}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure training on a GPU.")
    parser.add_argument("--if-present", action="store_true", help="skip it with status 0 where there is no CUDA GPU")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, from end to end")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long it may take")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("gpu-report.json"))
    return parser.parse_args(arguments)


def run_part(part: str, report: Report, deadline: float, *, tiny: bool) -> None:
    """Run one part until a deadline (of the monotonic clock), and put what it found into the report."""
    print(f"\n## {part}", flush=True)
    match part:
        case "selftest":
            run_selftest(report, deadline, tiny=tiny)
        case "steps":
            groups = tiny_cases() if tiny else [*flux_cases()[:2], *sdxl_cases(), *flux_cases()[2:]]
            measure_steps(groups, report, deadline, tiny=tiny)
            print("\n".join([LEGEND, *steps_table(report.steps, report.gpu, report.memory_mib)]), flush=True)
        case _:
            run_product(report, deadline, tiny=tiny)
            print("\n".join(product_table(report.product)), flush=True)


def run_selftest(report: Report, deadline: float, *, tiny: bool) -> None:
    """The GPU's self-test, as the daemon runs it."""
    device = ["--device", "cpu"] if tiny else []
    output = output_of(["-m", "training_worker.engines.diffusers.selftest", *device], deadline)
    report.selftest = msgspec.json.decode(output)
    print(output, flush=True)


def measure_steps(groups: list[list[Case]], report: Report, deadline: float, *, tiny: bool) -> None:
    """Run each group's cases in a process of its own, and show each figure as it comes."""
    for cases in groups:
        for figures in figures_of(cases, deadline, tiny=tiny):
            report.steps.append(figures)
            print(figures.case.name, figures.seconds_per_step, figures.peak_gib, figures.fault or "", flush=True)


def figures_of(cases: list[Case], deadline: float, *, tiny: bool) -> Iterator[Figures]:
    """What a process measures; those that it leaves out for want of time, or dies of, have a fault."""
    left = list(cases)
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(  # noqa: S603 - our own
            _command(cases, tiny=tiny), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
            timer.start()
            for line in process.stdout or ():
                figures = msgspec.json.decode(line, type=Figures)
                left.remove(figures.case)
                yield figures
            status = process.wait()
            timer.cancel()
        errors.seek(0)
        why = failure_in(status, errors.read()) if time.monotonic() < deadline else "no time left"
    for case in left:
        yield Figures(case=case, fault=why)


def _command(cases: list[Case], *, tiny: bool) -> list[str]:
    argument = msgspec.json.encode(cases).decode()
    return [sys.executable, "-m", "benchmarks.gpu.steps", argument, *(["--tiny"] if tiny else [])]


def run_product(report: Report, deadline: float, *, tiny: bool) -> None:
    """Write the pipelines and the data set, and play all scenes."""
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-", dir=None if tiny else TMPFS) as name:
        folder = Path(name)
        for family in ModelFamily:
            size = ["--tiny"] if tiny else []
            began = time.monotonic()
            output_of(["-m", "benchmarks.gpu.pipelines", str(folder / family), family.value, *size], deadline)
            print(f"{family} pipeline written in {time.monotonic() - began:.1f} s", flush=True)
        output_of(["-m", "training_worker.engines.demo_dataset", str(folder / "dataset")], deadline)
        report.product = asyncio.run(
            play_all(folder, deadline, tiny=tiny, show=lambda result: print(result, flush=True))
        )
        # What the daemon found before its first job.
        found = sorted((folder / "state" / "selftest").glob("*.json"))
        report.selftest = [msgspec.json.decode(file.read_bytes()) for file in found] or report.selftest
        shutil.copy(folder / "worker.log", "gpu-worker.log")


def find_gpu() -> Found | None:
    """The GPU that rows are on, looked for in a process of its own: looking takes some of its memory."""
    output = output_of(["-m", "benchmarks.gpu.steps", "gpu"], time.monotonic() + 120)
    return msgspec.json.decode(output, type=Found | None)


def output_of(arguments: Sequence[str], deadline: float) -> str:
    """The last line that a program of ours prints. Raises `NoFiguresError` if it ends otherwise than well."""
    left = max(1.0, deadline - time.monotonic())
    try:
        ended = subprocess.run(  # noqa: S603 - our own
            [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=left
        )
    except subprocess.TimeoutExpired:
        raise NoFiguresError(f"{arguments[1]} did not end within {left:.0f} s") from None
    if ended.returncode:
        raise NoFiguresError(f"{arguments[1]}: {failure_in(ended.returncode, ended.stderr)}")
    return (ended.stdout.splitlines() or [""])[-1]


def failure_in(status: int, errors: str) -> str:
    """Why, in short, a process ended with a status, negative for a signal."""
    if "out of memory" in errors.casefold():
        return "out of memory"
    if status < 0:
        return f"ended by signal {-status}"
    lines = errors.strip().splitlines()
    return lines[-1] if lines else f"ended with status {status}"


if __name__ == "__main__":
    sys.exit(main())
