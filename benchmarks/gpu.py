"""Training on a CUDA card beside the planner's predictions: memory, seconds a step, and time to the first step.

python -m benchmarks.gpu                 on the first card; status 1 where there is none
python -m benchmarks.gpu --if-present    the same, and skipped with status 0 where there is none
python -m benchmarks.gpu --tiny          tries the script on the CPU, with a tiny transformer

A LoRA of FLUX.1-dev of rank 16 is trained with batch 1, 8-bit AdamW and gradient checkpointing. Weights, latents and
texts are random numbers of the true shapes: nothing is downloaded, and nothing is read from a disk. Each row is a
process of its own, so that one which runs out of memory leaves nothing to the next.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from training_presets.cards import CardSpec, find_card
from training_presets.duration import seconds_per_step
from training_presets.memory import CONTEXT, GIB, estimate_memory
from training_presets.presets import presets
from training_presets.workload import Workload, workload_of
from training_schemas.jobs import TrainingType
from training_schemas.progress import Phase
from training_schemas.spec import FluxLoraParameters, Quantization
from training_schemas.validation import convert_strictly

TRAINING = "benchmarks.gpu_training"
RESOLUTIONS = (512, 768, 1024)
WARM_UPS, STEPS = 2, 5
TIMEOUT = 1800.0  # seconds that a row may take
MIB = 2**20
NOTHING = "-"
HEADINGS = (
    "base",
    "pixels",
    "GiB planned",
    "GiB measured",
    "ratio",
    "s/step planned",
    "s/step measured",
    "ratio",
    "s to first step",
)
WIDTHS = (5, 6, 11, 12, 5, 14, 15, 5, 15)
LEGEND = f"""\
GiB planned: the planner's peak of loading and training, without its {CONTEXT / GIB:.1f} GiB for the CUDA context
GiB measured: what torch has taken of the card at most (max_memory_reserved); the CUDA context is not in it
s/step measured: median of {STEPS} after {WARM_UPS} to warm up, the card waited for before and after each
s to first step: from the start of the process to the end of its first step; weights are drawn instead of read"""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What a row trains; ``tiny`` is a small transformer on the CPU."""

    quantization: Quantization
    resolution: int
    tiny: bool = False

    @property
    def device(self) -> str:
        """Where it trains."""
        return "cpu" if self.tiny else "cuda"

    @property
    def parameters(self) -> FluxLoraParameters:
        """The settings of the run, and of the plan."""
        settings = presets()["flux_24gb_balanced"].parameters | {
            "resolution": self.resolution,
            "quantization": self.quantization.value,
            "batchSize": 1,
            "gradientAccumulationSteps": 1,
            "optimizer": "adamw8bit",
            "loraRank": 16,
        }
        return convert_strictly(settings, FluxLoraParameters)

    @property
    def workload(self) -> Workload:
        """What the planner sees of it."""
        return workload_of(TrainingType.FLUX_LORA, self.parameters)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The card as torch sees it: all its memory, and what nobody else uses."""

    name: str
    memory_mib: int
    free_mib: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; the end of the first step is a time of the system's clock, in seconds."""

    peak_mib: int | None
    seconds_per_step: float
    first_step_ended: float


class NoFiguresError(Exception):
    """A process has ended without figures; the text is what stands in their place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure training on a CUDA card.")
    parser.add_argument("--if-present", action="store_true", help="skip it with status 0 where there is no CUDA card")
    parser.add_argument("--tiny", action="store_true", help="try the script on the CPU, with a tiny transformer")
    options = parser.parse_args(arguments)
    if options.tiny:
        print("a tiny transformer on the CPU; what is planned is for FLUX.1-dev")
        print_table([Case(quantization=how, resolution=RESOLUTIONS[0], tiny=True) for how in Quantization], None)
        return 0
    try:
        found = find_cuda()
    except NoFiguresError as failure:
        print(f"benchmarks.gpu: cannot look for a CUDA card: {failure}", file=sys.stderr)
        return 1
    if found is None and options.if_present:
        print("benchmarks.gpu: skipped, there is no CUDA card")
        return 0
    if found is None:
        print("benchmarks.gpu: needs a CUDA card, and a torch built for CUDA; torch sees none", file=sys.stderr)
        return 1
    print(f"{found.name}, {found.memory_mib} MiB, of which {found.free_mib} are free")
    print_table([Case(quantization=how, resolution=size) for how in Quantization for size in RESOLUTIONS], found)
    return 0


def find_cuda() -> Found | None:
    """The card that rows are on, looked for in a process of its own: looking takes some of the card's memory."""
    return msgspec.json.decode(output_of("card"), type=Found | None)


def print_table(cases: Sequence[Case], found: Found | None) -> None:
    """Run the cases one after another."""
    spec = None if found is None else find_card(found.name, found.memory_mib)
    if found is not None and spec is None:
        print("the catalogue does not know this card: no time is planned")
    print(LEGEND)
    print_cells(HEADINGS)
    for case in cases:
        print_cells(row(case, found, spec))


def row(case: Case, found: Found | None, spec: CardSpec | None) -> list[str]:
    """A row's cells: run the case, unless the planner says that it needs more than the card has."""
    needed = planned_memory(case.workload)
    gib = (needed - CONTEXT) / GIB
    seconds = None if spec is None else seconds_per_step(case.workload, spec)
    head = [case.quantization.value, str(case.resolution), f"{gib:.2f}"]
    planned_step = NOTHING if seconds is None else f"{seconds:.3f}"
    if found is not None and needed > found.memory_mib * MIB:
        return [*head, NOTHING, NOTHING, planned_step, "does not fit: not run"]
    began = time.time()
    try:
        figures = msgspec.json.decode(output_of(msgspec.json.encode(case).decode()), type=Figures)
    except NoFiguresError as failure:
        return [*head, NOTHING, NOTHING, planned_step, str(failure)]
    peak = None if figures.peak_mib is None else figures.peak_mib * MIB / GIB
    return [
        *head,
        "not measured" if peak is None else f"{peak:.2f}",
        ratio(peak, gib),
        planned_step,
        f"{figures.seconds_per_step:.3f}",
        ratio(figures.seconds_per_step, seconds),
        f"{figures.first_step_ended - began:.1f}",
    ]


def planned_memory(work: Workload) -> float:
    """What the planner counts for what a row does, in bytes: encoders and samples are left out."""
    phases = estimate_memory(work).phases
    return max(phase.total for phase in phases if phase.phase in {Phase.LOADING_MODEL, Phase.TRAINING})


def ratio(measured: float | None, planned: float | None) -> str:
    """Of what was measured to what was planned, where there are both."""
    return NOTHING if measured is None or planned is None else f"{measured / planned:.2f}"


def print_cells(cells: Sequence[str]) -> None:
    """One line of the table."""
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=False))
    print("  ".join(padded), flush=True)


def output_of(argument: str) -> str:
    """What the training program prints for an argument.

    Raises:
        NoFiguresError: It has ended otherwise than well, or has not ended.
    """
    command = [sys.executable, "-m", TRAINING, argument]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)  # noqa: S603 - our own
    except subprocess.TimeoutExpired:
        raise NoFiguresError(f"not ended after {TIMEOUT:.0f} s: killed") from None
    if ended.returncode:
        raise NoFiguresError(failure_in(ended.returncode, ended.stderr))
    return ended.stdout.splitlines()[-1]


def failure_in(status: int, errors: str) -> str:
    """In a few words, why a process ended with a status, negative for a signal."""
    if "out of memory" in errors.casefold():
        return "out of memory"
    if status < 0:
        return f"ended by signal {-status}"
    lines = errors.strip().splitlines()
    return lines[-1] if lines else f"ended with status {status}"


if __name__ == "__main__":
    sys.exit(main())
