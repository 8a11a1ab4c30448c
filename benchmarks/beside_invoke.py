"""The built-in trainer beside invoke-training: steps a second and time to the first step, on the same tiny models.

    INVOKE_TRAINING_PYTHON=/path/to/python python -m benchmarks.beside_invoke [--rounds 3]

The variable names an interpreter that has invoke-training; without it nothing is measured. Both train in turns, a run
each, with one thread. Seconds are of the process's CPU time: what else the machine does would change the clock's more
than the trainers differ.
"""

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.invoke_runs import Case, Speed, run_ours, run_theirs
from benchmarks.report import print_row
from benchmarks.tiny_runs import Bench
from training_schemas.jobs import TrainingType

VARIABLE = "INVOKE_TRAINING_PYTHON"
# What invoke-training's FLUX pipeline would cache, it cannot read.
CASES = [
    *(
        Case(kind, ours_cached=cached, theirs_cached=cached)
        for kind in TrainingType
        if kind is not TrainingType.FLUX_LORA
        for cached in (True, False)
    ),
    Case(TrainingType.FLUX_LORA, ours_cached=False, theirs_cached=False),
    Case(TrainingType.FLUX_LORA, ours_cached=True, theirs_cached=False),
]

Speeds = dict[Case, list[tuple[Speed, Speed]]]


def measure(bench: Bench, python: str, rounds: int) -> Speeds:
    """All cases in each round, ours and theirs."""
    speeds: Speeds = defaultdict(list)
    for _ in range(rounds):
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                speeds[case].append((run_ours(bench, case), run_theirs(bench, case, python, Path(folder))))
    return speeds


def report(speeds: Speeds) -> None:
    """Print medians, and the median of the rounds' ratios with their extremes."""
    print("steps a second of CPU time")
    for case, pairs in speeds.items():
        _report_row(case, [(ours.rate, theirs.rate) for ours, theirs in pairs], faster=1)
    print("seconds of CPU time from the start of the program to the end of its first step")
    for case, pairs in speeds.items():
        _report_row(case, [(ours.cold, theirs.cold) for ours, theirs in pairs], faster=-1)


def _report_row(case: Case, pairs: list[tuple[float, float]], *, faster: int) -> None:
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [(one / other) ** faster for one, other in pairs]
    middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
    print_row(
        f"{case.kind}, {_caches(case)}",
        f"ours {ours:.2f}, invoke-training {theirs:.2f}, ours {middle:.2f} times as fast ({least:.2f}-{most:.2f})",
    )


def _caches(case: Case) -> str:
    if case.ours_cached != case.theirs_cached:
        return "ours cached"
    return "cached" if case.ours_cached else "at each step"


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description="Train with both, in turns.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if (python := os.environ.get(VARIABLE)) is None:
        print(f"beside invoke-training: skipped, {VARIABLE} names no interpreter")
        return
    with tempfile.TemporaryDirectory() as name:
        print(f"beside invoke-training, tiny models, a thread each, medians of {rounds}")
        report(measure(Bench(Path(name)), python, rounds))


if __name__ == "__main__":
    main()
