"""The estimate: how long a job takes on a GPU with the settings that cost least there, and what it costs."""

import msgspec
from msgspec import field

from training_presets.cards import CardSpec, cost_usd, named_card
from training_presets.duration import TimeEstimate, estimate_time
from training_presets.fastest import Choice, TargetGpu, fastest
from training_presets.planner import DoesNotFitError, Plan
from training_presets.workload import USUAL_IMAGES, workload_of
from training_schemas.jobs import MemoryTier
from training_schemas.progress import Phase
from training_schemas.spec import Execution

# Between which parts of an estimate three of four published times lie: 17 of 22 (`training-worker plan --check`).
RANGE = (0.75, 1.5)

# The card that a tier is priced by.
REFERENCE_CARDS = {
    MemoryTier.GB8: "RTX 3060",
    MemoryTier.GB16: "RTX 4080",
    MemoryTier.GB24: "RTX 4090",
    MemoryTier.GB40: "A100 40GB",
    MemoryTier.GB80: "H100",
}


class CostEstimate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a job takes on one kind of card, or on as many as it asks for, with the settings that cost least there.

    Costs are US dollars, None where nobody knows the card's price; ranges go from the least to the most that is likely.
    ``breakdown`` are hours by phase, ``peak_vram_gib`` what the run needs on its card.
    """

    estimated_cost_usd: float | None = field(name="estimatedCostUSD")
    training_hours: float
    steps_per_minute: float
    memory_tier: MemoryTier
    card: str
    peak_vram_gib: float
    hours_range: tuple[float, float]
    cost_range_usd: tuple[float, float] | None = field(name="costRangeUSD")
    breakdown: dict[Phase, float]


def reference_card(tier: MemoryTier) -> CardSpec:
    """The card that a tier is priced by."""
    card = named_card(REFERENCE_CARDS[tier])
    assert card is not None  # noqa: S101 - the catalogue has it, or a test fails
    return card


def choice_on(plan: Plan, card: CardSpec) -> Choice:
    """What a job would be trained with on a card, all of it free; as planned where it does not fit."""
    gpu = TargetGpu(name=card.name, memory_mib=card.memory_mib, free_mib=card.memory_mib, card=card)
    try:
        return fastest(plan, gpu)
    except DoesNotFitError:
        return Choice(parameters=plan.parameters, execution=Execution(), changes=[], peak_mib=plan.memory.peak_mib)


def time_on(plan: Plan, choice: Choice, card: CardSpec, images: int = USUAL_IMAGES) -> TimeEstimate:
    """How long a job takes with such a choice, phase by phase."""
    work = workload_of(
        plan.training_type, choice.parameters, images=images, gpu_count=plan.gpu_count, execution=choice.execution
    )
    return estimate_time(work, card)


def estimate_cost(
    plan: Plan,
    card: CardSpec | None = None,
    *,
    usd_per_hour: float | None = None,
    images: int = USUAL_IMAGES,
) -> CostEstimate:
    """What a job takes on ``card``, all of it free, else on the one that its tier is priced by.

    ``usd_per_hour`` of one card goes before the catalogue's price.
    """
    card = card or reference_card(plan.tier)
    hourly = card.usd_per_hour if usd_per_hour is None else usd_per_hour
    if hourly is not None:
        hourly *= plan.gpu_count
    choice = choice_on(plan, card)
    time = time_on(plan, choice, card, images)
    low, high = (time.seconds * share for share in RANGE)
    cheap, dear = cost_usd(low, hourly), cost_usd(high, hourly)
    return CostEstimate(
        estimated_cost_usd=cost_usd(time.seconds, hourly),
        training_hours=time.hours,
        steps_per_minute=60 / time.seconds_per_step,
        memory_tier=plan.tier,
        card=card.name,
        peak_vram_gib=choice.peak_mib / 1024,
        hours_range=(low / 3600, high / 3600),
        cost_range_usd=None if cheap is None or dear is None else (cheap, dear),
        breakdown={phase: seconds / 3600 for phase, seconds in time.phases.items()},
    )
