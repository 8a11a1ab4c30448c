"""The built-in trainer on tiny models: steps a second, time to the first step, and memory beside the planner's count.

python -m benchmarks.trainer
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import print_row
from benchmarks.tiny_runs import PROGRAM, TIMEOUT, UNCACHED, Bench, run_module, steps_of
from training_schemas.jobs import TrainingType
from training_schemas.spec import Quantization
from training_worker.engines.diffusers.standby import READY

ROUNDS = 3
# Memory that is freed goes back at once, and one thread computes as many pieces at a time as a GPU does.
FREEING = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def rate(run: Path) -> float:
    """Steps a second, the first left out."""
    run_module(PROGRAM, str(run))
    steps = steps_of(run)
    return (len(steps) - 1) / (steps[-1].time - steps[0].time)


def cold(run: Path) -> float:
    """Seconds from the start of the program to its first step."""
    began = time.time()
    run_module(PROGRAM, str(run))
    return steps_of(run)[0].time - began


def from_standby(run: Path) -> float:
    """The same from when a trainer on standby is given the run."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-m", PROGRAM, "--standby"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL
        ) as trainer,
    ):
        theirs.close()
        ours.settimeout(TIMEOUT)
        if ours.recv(len(READY)) != READY:
            raise RuntimeError("the trainer on standby ended before it was ready")
        began = time.time()
        ours.sendall(os.fsencode(f"{run}\n"))
        if (status := trainer.wait(TIMEOUT)) != 0:
            raise RuntimeError(f"the trainer on standby ended with status {status}")
    return steps_of(run)[0].time - began


def main() -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        print(f"steps a second, tiny models, batch 2, medians of {ROUNDS}")
        for kind in TrainingType:
            cached = statistics.median(rate(bench.write(kind)) for _ in range(ROUNDS))
            live = statistics.median(rate(bench.write(kind, **UNCACHED)) for _ in range(ROUNDS))
            print_row(kind, f"cached {cached:.1f}, encoded at each step {live:.1f}, ratio {cached / live:.2f}")
        print(f"seconds to the first step of a FLUX LoRA, medians of {ROUNDS}")
        kind = TrainingType.FLUX_LORA
        first = statistics.median(cold(bench.write(kind)) for _ in range(ROUNDS))
        cold(bench.write(kind, "shared"))
        again = statistics.median(cold(bench.write(kind, "shared")) for _ in range(ROUNDS))
        warm = statistics.median(from_standby(bench.write(kind, "shared")) for _ in range(ROUNDS))
        print_row("cold", f"{first:.2f}")
        print_row("cold, all in the cache", f"{again:.2f}, ratio {first / again:.2f}")
        print_row("standby, all in the cache", f"{warm:.2f}, ratio to that {again / warm:.2f}")
    print("memory of a FLUX transformer of 163 M parameters, 3 steps, MiB")
    for how in Quantization:
        figures = json.loads(run_module("benchmarks.trainer_memory", how, **FREEING))
        predicted, measured = figures["predicted"], figures["measured"]
        print_row(how, f"predicted {predicted:.0f}, measured {measured:.0f}, ratio {measured / predicted:.2f}")


if __name__ == "__main__":
    main()
