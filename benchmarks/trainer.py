"""The built-in trainer on tiny models: steps a second, time to the first step, and memory beside the planner's count.

python -m benchmarks.trainer
"""

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import print_row
from training_presets.presets import presets
from training_schemas.jobs import EngineName, ModelFamily, TrainingType
from training_schemas.progress import StepRecord, decode_record
from training_schemas.spec import PROGRESS_FILE, SPEC_FILE, Quantization, RunSpec
from training_worker.engines.diffusers.standby import READY

ROUNDS = 3
STEPS = 30
PROGRAM = "training_worker.engines.diffusers"
PATIENCE = 300.0  # seconds that any of our programs may take
SMALL: dict[str, Any] = {
    "resolution": 64,
    "maxTrainSteps": STEPS,
    "loraRank": 8,
    "batchSize": 2,
    "gradientAccumulationSteps": 1,
    "weightDtype": "float32",
    "quantization": "none",
    "optimizer": "adamw",
    "gradientCheckpointing": False,
}
UNCACHED: dict[str, Any] = {"cacheVaeOutputs": False, "cacheTextEncoderOutputs": False}
# Memory that is freed goes back at once, and one thread computes as many pieces at a time as a card does.
FREEING = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}

numbers = itertools.count()


class Bench:
    """Runs of the trainer below one folder, with its tiny models and a drawn data set."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for family in ModelFamily:
            run_module(f"{PROGRAM}.tiny", str(folder / family), family)
        run_module("training_worker.engines.demo_dataset", str(folder / "robots"))

    def write(self, training_type: TrainingType, cache: str | None = None, **settings: Any) -> Path:
        """Write a run folder; runs with the same ``cache`` share what encoders made."""
        run = self._folder / f"run-{next(numbers)}"
        run.mkdir()
        family = training_type.family
        preset = presets()["flux_24gb_balanced" if family is ModelFamily.FLUX else "sdxl_balanced"]
        spec = RunSpec(
            job_id="bench",
            attempt=1,
            training_type=training_type,
            engine=EngineName.DIFFUSERS,
            model_path=str(self._folder / family),
            dataset_path=str(self._folder / "robots"),
            attempt_path=str(run / "attempt"),
            resume_from=None,
            device="cpu",
            parameters=preset.parameters_for(training_type) | SMALL | settings,
            cache_path=None if cache is None else str(self._folder / cache),
            cache_limit_mib=1024,
        )
        (run / SPEC_FILE).write_bytes(msgspec.json.encode(spec))
        return run


def run_module(module: str, *arguments: str, **environment: str) -> str:
    """Run one of our programs, and give what it prints."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(  # noqa: S603 - our own
        command, check=True, capture_output=True, text=True, env=os.environ | environment, timeout=PATIENCE
    ).stdout


def steps_of(run: Path) -> list[StepRecord]:
    """The steps that a run has told."""
    lines = (run / PROGRESS_FILE).read_bytes().splitlines()
    return [record for record in map(decode_record, lines) if isinstance(record, StepRecord)]


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
    """The same from when a trainer on standby is told the run."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-m", PROGRAM, "--standby"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL
        ) as trainer,
    ):
        theirs.close()
        ours.settimeout(PATIENCE)
        if ours.recv(len(READY)) != READY:
            raise RuntimeError("the trainer on standby ended before it was ready")
        began = time.time()
        ours.sendall(os.fsencode(f"{run}\n"))
        if (status := trainer.wait(PATIENCE)) != 0:
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
