"""The output of plan and presets: what would be trained with what, how long it takes and what it costs."""

import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from training_presets.cards import CardSpec, catalogue, cost_usd, named_card, usd_per_hour
from training_presets.duration import TimeEstimate, estimate_time
from training_presets.estimates import CostEstimate, estimate_cost
from training_presets.fastest import Choice, TargetGpu, fastest
from training_presets.measurements import Comparison, compare, measurements, summarise
from training_presets.memory import GIB, MemoryEstimate, estimate_memory
from training_presets.planner import DoesNotFitError, Plan, plan_job
from training_presets.presets import presets
from training_presets.recommendations import recommend_presets
from training_presets.tier_estimates import TierEstimate, cheapest, quickest, tier_estimates
from training_presets.workload import Workload, workload_of
from training_schemas.jobs import CostOptimization, TrainingJob, TrainingType
from training_schemas.plans import SettingChange
from training_schemas.spec import Execution
from training_schemas.validation import refused
from training_worker.cli.job_view import describe_change, describe_estimate
from training_worker.settings import Settings

# Settings of a preset that are shown, by the heading of their column.
SHOWN = {
    "batch": "batch_size",
    "accumulation": "gradient_accumulation_steps",
    "steps": "max_train_steps",
    "rank": "lora_rank",
    "base": "quantization",
}


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The needs of a setting on a GPU: memory by phase and part in GiB, time, and US dollars where a price is known.

    ``gain`` says how many times as much the plan as it was would cost there, and ``execution`` how a step is computed.
    """

    gpu: str
    feasible: bool
    reason: str | None = None
    peak_vram_gib: float = msgspec.field(name="peakVramGiB")
    peak_phase: str
    breakdown: dict[str, dict[str, float]]
    seconds_per_step: float
    hours: float
    usd: float | None
    changes: list[SettingChange]
    settings: dict[str, Any]
    execution: Execution = Execution()
    gain: float = 1.0


def job_of_preset(preset: str, training_type: str | None) -> TrainingJob:
    """Return a job that names only its preset, and its type where that is no LoRA. Raises `InvalidMessageError`."""
    kind = training_type or f"{preset.partition('_')[0].upper()}_LORA"
    if kind not in set(TrainingType):
        raise refused("--preset", f"unknown preset {preset!r}; one of {', '.join(presets())}")
    return TrainingJob(
        job_id="plan", training_type=TrainingType(kind), dataset_path="/", output_path="/", preset=preset
    )


def show_plan(job: TrainingJob, gpu: str | None, settings: Settings, *, as_json: bool) -> None:
    """Print a job's plan: its settings, and what it takes on which GPUs. Raises `InvalidMessageError`."""
    plan = plan_job(job)
    if gpu is not None:
        cards = _cards(gpu, settings)
        _print_answers([_on_card(plan, card, settings) for card in cards], as_json=as_json)
        return
    estimate, tiers = estimate_cost(plan), tier_estimates(plan)
    if as_json:
        print(msgspec.json.encode(msgspec.to_builtins(plan) | {"estimate": estimate, "tiers": tiers}).decode())
        return
    table = Table("setting", "value", title=f"{plan.training_type}, preset {plan.preset}, GPUs of {plan.tier} or more")
    for name, value in msgspec.to_builtins(plan.parameters).items():
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    for change in plan.changes:
        console.print(describe_change(change), soft_wrap=True)
    for advice in plan.warnings:
        console.print(f"{advice.level}: {advice.message}")
    console.print(describe_estimate(estimate), soft_wrap=True)
    console.print(_tier_table(tiers))


def show_workload(work: Workload, gpu: str | None, settings: Settings, *, as_json: bool) -> None:
    """Print what these settings take on a GPU, or on all. Raises `InvalidMessageError` for an unknown GPU."""
    _print_answers([_answer(work, card, settings) for card in _cards(gpu, settings)], as_json=as_json)


def show_check(*, as_json: bool) -> None:
    """Print the published figures beside ours."""
    comparisons = [compare(measurement) for measurement in measurements()]
    summary = summarise(comparisons)
    if as_json:
        print(msgspec.json.encode({"rows": comparisons, "summary": summary}).decode())
        return
    table = Table("setting", "published GiB", "ours", "error", "card, s", "ours", "ratio", "source")
    for one in comparisons:
        table.add_row(*_check_row(one))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(
        f"peak memory: {summary.memory_median:.1%} off in the median, {summary.memory_worst:.1%} at worst; "
        f"seconds a pass: a factor {summary.time_median:.2f} in the median, {summary.time_worst:.2f} at worst; "
        f"{summary.cards_agreed} of {summary.cards} GPUs agreed on",
        soft_wrap=True,
    )


def show_presets(*, as_json: bool) -> None:
    """Print all presets, with what each takes on the GPU that its tier is priced by."""
    if as_json:
        print(msgspec.json.encode(list(presets().values())).decode())
        return
    table = Table("preset", "for", *SHOWN, "tier", "peak GiB", "card", "hours", "USD")
    for kind in TrainingType:
        found = recommend_presets(kind, None, CostOptimization.BALANCED)["recommendations"]
        by_name = {one["preset"]: one for one in found}
        for name in [name for name in presets() if name in by_name]:
            # As they are trained on the smallest GPU of the tier, which may be less than the starting point.
            config = by_name[name]["config"] | by_name[name]["config"]["config_overrides"]
            settings = (str(config[column]) for column in SHOWN.values())
            table.add_row(name, str(kind), *settings, *_estimate_cells(by_name[name]["estimate"]))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def plot_memory(work: Workload, gpu: str, settings: Settings, path: Path) -> None:
    """Draw the predicted peak over resolutions and batch sizes, with the GPU's own memory."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only plots need it
    except ImportError:
        raise refused("--plot", "matplotlib is needed: pip install 'training-worker[plot]'") from None
    card = _cards(gpu, settings)[0]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sizes = list(range(256, 1281, 64))
    for batch in (1, 2, 4, 8):
        peaks = [
            estimate_memory(msgspec.structs.replace(work, width=size, height=size, batch_size=batch)).peak_gib
            for size in sizes
        ]
        axes.plot(sizes, peaks, label=f"batch {batch}")
    axes.axhline(card.memory_mib / 1024, color="black", linestyle="--", label=f"{card.name}: all of it")
    axes.set(
        xlabel="resolution, pixels a side", ylabel="peak memory, GiB", title=f"{work.training_type} on {card.name}"
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise refused("--plot", f"cannot write {path}: {error}") from None
    print(f"{path}: written")


def _cards(gpu: str | None, settings: Settings) -> list[CardSpec]:
    if gpu is None:
        return [*settings.cards, *catalogue().cards]
    if (card := named_card(gpu, settings.cards)) is None:
        known = ", ".join(dict.fromkeys(card.name for card in catalogue().cards))
        raise refused("--gpu", f"unknown GPU {gpu!r}; known: {known}")
    return [card]


def _on_card(plan: Plan, card: CardSpec, settings: Settings) -> Answer:
    """Plan a job for a GPU that is all its own, with the settings that cost least there."""
    try:
        choice = fastest(
            plan, TargetGpu(name=card.name, memory_mib=card.memory_mib, free_mib=card.memory_mib, card=card)
        )
    except DoesNotFitError as error:
        lowest = msgspec.structs.replace(plan, parameters=[plan.parameters, *plan.ladder][-1])
        answer = _answer(lowest.workload, card, settings, lowest)
        return msgspec.structs.replace(answer, feasible=False, reason=str(error))
    return _answer_of(plan, choice, card, settings)


def _answer_of(plan: Plan, choice: Choice, card: CardSpec, settings: Settings) -> Answer:
    chosen = msgspec.structs.replace(
        plan, parameters=choice.parameters, changes=[*plan.changes, *choice.changes], peak_mib=choice.peak_mib
    )
    work = workload_of(plan.training_type, choice.parameters, gpu_count=plan.gpu_count, execution=choice.execution)
    answer = _answer(work, card, settings, chosen)
    return msgspec.structs.replace(answer, execution=choice.execution, gain=round(choice.gain, 3))


def _answer(work: Workload, card: CardSpec, settings: Settings, plan: Plan | None = None) -> Answer:
    memory, time = estimate_memory(work), estimate_time(work, card)
    fits = memory.peak_mib <= card.memory_mib
    needs = f"needs {memory.peak_gib:.1f} GiB, and the GPU has {card.memory_mib / 1024:.1f}"
    return Answer(
        gpu=_title(card),
        feasible=fits,
        reason=None if fits else needs,
        peak_vram_gib=round(memory.peak_gib, 2),
        peak_phase=str(memory.peak.phase),
        breakdown=_breakdown(memory),
        seconds_per_step=round(time.seconds_per_step, 3),
        hours=round(time.hours, 3),
        usd=_price(card, time, settings, work.gpu_count),
        changes=[] if plan is None else plan.changes,
        settings=msgspec.to_builtins(work if plan is None else plan.parameters),
    )


def _breakdown(memory: MemoryEstimate) -> dict[str, dict[str, float]]:
    return {
        str(phase.phase): {name: round(size / GIB, 3) for name, size in phase.parts.items()}
        | {"total": round(phase.total / GIB, 3)}
        for phase in memory.phases
    }


def _price(card: CardSpec, time: TimeEstimate, settings: Settings, count: int) -> float | None:
    cost = cost_usd(time.seconds * count, usd_per_hour(card.name, card.memory_mib, settings.prices, settings.cards))
    return None if cost is None else round(cost, 4)


def _title(card: CardSpec) -> str:
    return f"{card.name} {round(card.memory_mib / 1024)}GB"


def _print_answers(answers: list[Answer], *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(answers[0] if len(answers) == 1 else answers).decode())
        return
    console = Console()
    table = Table("card", "fits", "peak GiB", "in phase", "s a step", "hours", "USD")
    for one in answers:
        fits = "yes" if one.feasible else "no"
        usd = "-" if one.usd is None else f"{one.usd:.2f}"
        table.add_row(
            one.gpu,
            fits,
            f"{one.peak_vram_gib:.1f}",
            one.peak_phase,
            f"{one.seconds_per_step:.2f}",
            f"{one.hours:.2f}",
            usd,
        )
    console.print(table)
    if len(answers) == 1:
        _print_details(answers[0], console)


def _print_details(answer: Answer, console: Console) -> None:
    if answer.reason is not None:
        console.print(answer.reason, soft_wrap=True)
    for change in answer.changes:
        console.print(describe_change(change), soft_wrap=True)
    parts = list(dict.fromkeys(name for phase in answer.breakdown.values() for name in phase))
    table = Table("GiB", *answer.breakdown)
    for part in parts:
        table.add_row(part, *(f"{phase[part]:.2f}" if part in phase else "" for phase in answer.breakdown.values()))
    console.print(table)


def _check_row(one: Comparison) -> tuple[str, ...]:
    row = one.measurement
    bounds = [f"{row.gib:g}"] if row.gib is not None else []
    bounds += [f"fits {row.fits:g}"] if row.fits is not None else []
    bounds += [f"not {row.out_of_memory:g}"] if row.out_of_memory is not None else []
    disagreed = "" if one.holds in (None, True) else "disagrees"
    return (
        row.name,
        ", ".join(bounds),
        f"{one.gib:.1f}",
        disagreed if one.memory_error is None else f"{one.memory_error:+.0%} {disagreed}".strip(),
        "" if row.seconds is None else f"{row.card}, {row.seconds:g}",
        "" if row.seconds is None or one.seconds is None else f"{one.seconds:.2f}",
        "" if one.time_ratio is None else f"{one.time_ratio:.2f}",
        row.source,
    )


def _tier_table(tiers: list[TierEstimate]) -> Table:
    """What the job takes on the card of each tier; the cheapest and the fastest are marked."""
    least, soonest = cheapest(tiers), quickest(tiers)
    table = Table("tier", "card", "peak GiB", "s a step", "hours", "USD", "than planned", "")
    for one in tiers:
        marks = [word for word, best in (("cheapest", least), ("fastest", soonest)) if one is best]
        usd = "-" if one.usd is None else f"{one.usd:.2f}"
        figures = (f"{one.peak_vram_mib / 1024:.1f}", f"{one.seconds_per_step:.2f}", f"{one.hours:.2f}", usd)
        table.add_row(str(one.tier), one.card, *figures, f"{one.gain:.2f} x", ", ".join(marks))
    return table


def _estimate_cells(estimate: CostEstimate) -> tuple[str, ...]:
    usd = "-" if estimate.estimated_cost_usd is None else f"{estimate.estimated_cost_usd:.2f}"
    hours = f"{estimate.training_hours:.2f}"
    return str(estimate.memory_tier), f"{estimate.peak_vram_gib:.1f}", estimate.card, hours, usd
