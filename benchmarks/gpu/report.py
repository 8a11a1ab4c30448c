"""The report: one JSON file, and tables of it for people."""

from typing import Any

import msgspec

from benchmarks.gpu.cases import Case, Figures, Loop
from benchmarks.gpu.product import SceneResult
from training_presets.cards import CardSpec, find_card
from training_presets.duration import seconds_per_step
from training_presets.memory import CONTEXT, GIB, estimate_memory
from training_schemas.progress import Phase

NOTHING = "-"
LEGEND = """\
s/step: median of the steps after those that warm up; the GPU is waited for before and after each
GiB: what torch reserved at most, the CUDA context not in it; planned: the planner's peak of loading and training
beside example: how many times as fast as diffusers' example loop with the same settings, in the same run"""


class Report(msgspec.Struct, kw_only=True):
    """All that was found; parts that were not run are None."""

    gpu: str
    memory_mib: int
    torch: str
    selftest: Any = None
    steps: list[Figures] = []
    product: list[SceneResult] = []
    seconds: dict[str, float] = {}


def steps_table(figures: list[Figures], gpu: str, memory_mib: int) -> list[str]:
    """A Markdown table of what was measured, beside the plan and beside the example loop."""
    spec = find_card(gpu, memory_mib)
    head = ["case", "s/step", "planned", "ratio", "GiB", "planned", "ratio", "beside example"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(_cells(one, figures, spec)) + " |" for one in figures]


def _cells(one: Figures, figures: list[Figures], spec: CardSpec | None) -> list[str]:
    if one.seconds_per_step is None:
        return [one.case.name, one.fault or NOTHING, *[NOTHING] * 6]
    planned = None if spec is None else seconds_per_step(one.case.workload, spec)
    gib = planned_gib(one.case)
    example = _example_of(one.case, figures)
    faster = None if example is None or one.case.loop is Loop.EXAMPLE else example / one.seconds_per_step
    return [
        one.case.name,
        f"{one.seconds_per_step:.3f}",
        _number(planned),
        _ratio(one.seconds_per_step, planned),
        _number(one.peak_gib),
        _number(gib),
        _ratio(one.peak_gib, gib),
        _number(faster),
    ]


def _example_of(case: Case, figures: list[Figures]) -> float | None:
    """Seconds of the example loop's step with the same settings."""
    same = msgspec.structs.replace(case, loop=Loop.EXAMPLE, stored_blocks=0, keep_attention=False)
    return next((one.seconds_per_step for one in figures if one.case == same), None)


def planned_gib(case: Case) -> float:
    """The planner's peak for what a row does, without its GiB for the CUDA context: encoders are left out."""
    phases = estimate_memory(case.workload).phases
    peak = max(phase.total for phase in phases if phase.phase in {Phase.LOADING_MODEL, Phase.TRAINING})
    return (peak - CONTEXT) / GIB


def product_table(results: list[SceneResult]) -> list[str]:
    """A Markdown table of the scenes."""
    head = ["scene", "outcome", "attempts", "s", "claim to first step, s", "s/step planned", "measured"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in results:
        predicted, measured = one.predicted or {}, one.measured or {}
        cells = [
            one.name,
            one.outcome if one.fault is None else f"{one.outcome}: {one.fault}",
            str(one.attempts),
            f"{one.seconds:.0f}",
            _number(one.phases.get("firstStep")),
            _number(predicted.get("secondsPerStep")),
            _number(measured.get("secondsPerStep")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _ratio(measured: float | None, planned: float | None) -> str:
    return NOTHING if measured is None or not planned else f"{measured / planned:.2f}"
