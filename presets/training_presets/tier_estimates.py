"""What a job would take on each tier of a fleet: the cheapest and the fastest of them."""

import msgspec
from msgspec import field

from training_presets.cards import cost_usd
from training_presets.estimates import choice_on, reference_card, time_on
from training_presets.planner import Plan
from training_schemas.jobs import MemoryTier


class TierEstimate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a job takes on the card that a tier is priced by, with the settings that cost least there.

    Hours and US dollars are of the whole job on all its cards; None where nobody knows the price. ``gain`` is how
    many times as much the plan as it was would cost there.
    """

    tier: MemoryTier
    card: str
    peak_vram_mib: int
    seconds_per_step: float
    hours: float
    usd: float | None = field(name="costUSD")
    gain: float


def tier_estimates(plan: Plan) -> list[TierEstimate]:
    """The job's own tier, and all above it."""
    return [_estimate(plan, tier) for tier in MemoryTier if tier.gigabytes >= plan.tier.gigabytes]


def cheapest(found: list[TierEstimate]) -> TierEstimate:
    """The tier that costs least."""
    return min(found, key=lambda one: float("inf") if one.usd is None else one.usd)


def quickest(found: list[TierEstimate]) -> TierEstimate:
    """The tier that takes least time."""
    return min(found, key=lambda one: one.hours)


def _estimate(plan: Plan, tier: MemoryTier) -> TierEstimate:
    card = reference_card(tier)
    choice = choice_on(plan, card)
    time = time_on(plan, choice, card)
    return TierEstimate(
        tier=tier,
        card=card.name,
        peak_vram_mib=choice.peak_mib,
        seconds_per_step=time.seconds_per_step,
        hours=time.hours,
        usd=cost_usd(time.seconds * plan.gpu_count, card.usd_per_hour),
        gain=choice.gain,
    )
