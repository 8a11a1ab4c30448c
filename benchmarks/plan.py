"""How long a plan and an estimate take, after import; and what each preset gains on each GPU by what is free there.

python -m benchmarks.plan            both
python -m benchmarks.plan --table    the gains as Markdown, for docs/planning.md
"""

import sys
import time
from collections.abc import Callable

from training_presets.cards import CardSpec, named_card
from training_presets.estimates import estimate_cost
from training_presets.fastest import Choice, TargetGpu, choose
from training_presets.planner import DoesNotFitError, Plan, plan_job
from training_presets.presets import Preset, presets
from training_presets.tier_estimates import tier_estimates
from training_schemas.jobs import TrainingJob, TrainingType
from training_schemas.spec import Execution, Quantization

ROUNDS = 20

# From the smallest to the largest.
GPUS = (
    "RTX 3060",
    "RTX 4080",
    "RTX 3090",
    "RTX 4090",
    "RTX 5090",
    "A100 40GB",
    "L40S",
    "A100 80GB",
    "H100",
    "B200",
)
NOTHING = "-"


def main() -> None:
    """Print microseconds a call over all types and presets, and the gains."""
    if "--table" in sys.argv[1:]:
        print_table()
        return
    kinds = [(kind, preset) for kind in TrainingType for preset in presets().values() if preset.family is kind.family]
    jobs, plans = [job_of(*pair) for pair in kinds], [plan_of(*pair) for pair in kinds]
    h100 = target(card_of("H100"))
    print(f"plan_job: {_microseconds(lambda: [plan_job(job) for job in jobs], len(jobs)):.0f} us")
    print(f"choose: {_microseconds(lambda: [choose(plan, h100) for plan in plans], len(plans)):.0f} us")
    print(f"estimate_cost: {_microseconds(lambda: [estimate_cost(plan) for plan in plans], len(plans)):.0f} us")
    print(f"tier_estimates: {_microseconds(lambda: [tier_estimates(plan) for plan in plans], len(plans)):.0f} us")
    print_gains()


def print_gains() -> None:
    """A line for each preset on each GPU: the plan as it was, as it is now, and how many times as fast."""
    print("\npreset, GPU: seconds a step as planned, settings -> now, settings: gain")
    for preset in presets().values():
        plan = plan_of(lora_of(preset), preset)
        for name in GPUS:
            print(f"{preset.name:22}{name:11}{line(plan, card_of(name))}")


def print_table() -> None:
    """The gains alone: a row for each preset, a column for each GPU."""
    print("| preset |", " | ".join(GPUS), "|")
    print("|---" * (len(GPUS) + 1) + "|")
    for preset in presets().values():
        plan = plan_of(lora_of(preset), preset)
        print(f"| `{preset.name}` |", " | ".join(cell(plan, card_of(name)) for name in GPUS), "|")


def cell(plan: Plan, card: CardSpec) -> str:
    """How many times as fast."""
    found = choice_on(plan, card)
    return NOTHING if found is None else f"{found.gain:.2f}"


def line(plan: Plan, card: CardSpec) -> str:
    """Before and after."""
    found = choice_on(plan, card)
    if found is None:
        return "does not fit"
    before = Choice(parameters=plan.parameters, execution=Execution(), changes=[], peak_mib=plan.peak_mib)
    return (
        f"{found.planned_seconds_per_step:7.2f} s {how(before):24} -> {found.seconds_per_step:7.2f} s {how(found):28}"
        f"{found.peak_mib / 1024:6.1f} GiB: {found.gain:.2f}"
    )


def how(choice: Choice) -> str:
    """Micro-batch by accumulation, what of the activations is kept, and the base."""
    settings, execution = choice.parameters, choice.execution
    kept = "all kept"
    if settings.gradient_checkpointing:
        some = f"{execution.stored_blocks} kept" if execution.stored_blocks else "none kept"
        kept = some + (" + attention" if execution.keep_attention else "")
    base = "" if settings.quantization is Quantization.NONE else f", {settings.quantization}"
    return f"{settings.batch_size}x{settings.gradient_accumulation_steps} {kept}{base}"


def choice_on(plan: Plan, card: CardSpec) -> Choice | None:
    """What would be trained on a card that is all its own; None where it does not fit."""
    try:
        return choose(plan, target(card))
    except DoesNotFitError:
        return None


def target(card: CardSpec) -> TargetGpu:
    """A GPU of this kind, all of it free."""
    return TargetGpu(name=card.name, memory_mib=card.memory_mib, free_mib=card.memory_mib, card=card)


def card_of(name: str) -> CardSpec:
    """A card of the catalogue."""
    card = named_card(name)
    assert card is not None  # noqa: S101 - the catalogue has it
    return card


def lora_of(preset: Preset) -> TrainingType:
    """The LoRA of a preset's family."""
    return TrainingType(f"{preset.family.upper()}_LORA")


def plan_of(kind: TrainingType, preset: Preset) -> Plan:
    """The plan of a job that sets no more than its preset."""
    return plan_job(job_of(kind, preset))


def job_of(kind: TrainingType, preset: Preset) -> TrainingJob:
    """A job that sets no more than its preset."""
    return TrainingJob(job_id="a", training_type=kind, dataset_path="/d", output_path="/o", preset=preset.name)


def _microseconds(call: Callable[[], object], count: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        call()
    return (time.perf_counter() - began) / ROUNDS / count * 1e6


if __name__ == "__main__":
    main()
