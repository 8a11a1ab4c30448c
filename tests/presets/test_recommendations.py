"""What to recommend to somebody who wants to know what to train on, and for how much."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_presets.advice import FLUX_TIERS, REQUIREMENTS, Level, card_advice
from training_presets.cards import CardSpec, named_card
from training_presets.estimates import REFERENCE_CARDS, estimate_cost, reference_card
from training_presets.planner import plan_job
from training_presets.recommendations import check_feasibility, recommend_presets
from training_presets.tiers import least_memory_mib
from training_schemas.jobs import CostOptimization, MemoryTier, TrainingJob, TrainingType
from training_schemas.validation import convert_strictly


def job(training_type: str = "FLUX_LORA", **fields: Any) -> TrainingJob:
    """A valid job with these fields, named as on the wire."""
    message = {"jobId": "a", "trainingType": training_type, "datasetPath": "/d", "outputPath": "/o"}
    return convert_strictly(message | fields, TrainingJob)


def card(name: str) -> CardSpec:
    """A card of the catalogue."""
    found = named_card(name)
    assert found is not None
    return found


def test_presets_come_in_the_order_of_the_request_and_within_the_budget() -> None:
    """First those of the wanted kind, the cheapest first."""
    found = recommend_presets(TrainingType.FLUX_LORA, 15.0, CostOptimization.BALANCED)["recommendations"]

    costs = [one["estimate"].estimated_cost_usd or 0 for one in found]
    assert [one["preset"] for one in found][:3] == ["flux_24gb_balanced", "flux_40gb_balanced", "flux_80gb_balanced"]
    assert costs[:3] == sorted(costs[:3])
    assert max(costs) <= 15


@pytest.mark.parametrize("kind", TrainingType)
@pytest.mark.parametrize("preference", CostOptimization)
def test_a_budget_that_is_too_small_leaves_nothing_but_the_cheapest(
    kind: TrainingType, preference: CostOptimization
) -> None:
    """Which reports what it would need."""
    found = recommend_presets(kind, 0.0001, preference)

    assert found["recommendations"] == []
    assert (found["cheapest"]["estimate"].estimated_cost_usd or 0) > 0.0001
    assert recommend_presets(kind, None, preference)["recommendations"][0]["preset"].endswith(preference)


@pytest.mark.parametrize("tier", MemoryTier)
def test_a_tier_is_priced_by_a_card_of_it(tier: MemoryTier) -> None:
    """One that has enough memory, and a price."""
    reference = reference_card(tier)

    assert reference.memory_mib >= least_memory_mib(tier)
    assert reference.usd_per_hour is not None
    assert set(REFERENCE_CARDS) == set(MemoryTier)


def test_an_estimate_adds_up() -> None:
    """Hours by phase are all hours, cost is hours at the card's price, and ranges lie around them."""
    estimate = estimate_cost(plan_job(job(gpuMemoryTier="40gb")))

    assert sum(estimate.breakdown.values()) == pytest.approx(estimate.training_hours)
    assert estimate.estimated_cost_usd == pytest.approx(estimate.training_hours * 1.48)
    assert estimate.hours_range[0] < estimate.training_hours < estimate.hours_range[1]
    assert estimate.cost_range_usd is not None
    assert estimate.cost_range_usd[0] < estimate.training_hours * 1.48 < estimate.cost_range_usd[1]


def test_a_price_of_ones_own_goes_before_the_catalogue() -> None:
    """Even where it is nothing."""
    plan = plan_job(job())

    assert estimate_cost(plan, usd_per_hour=0.0).estimated_cost_usd == 0
    unknown = CardSpec(name="x", memory_mib=24564, sustained_tflops=50, bandwidth_gbs=500)
    assert estimate_cost(plan, unknown).estimated_cost_usd is None
    assert estimate_cost(plan, unknown).cost_range_usd is None


def test_flux_below_24_gb_is_an_error_with_three_ways_out() -> None:
    """Whatever the models of memory predict: below that it is no pleasure."""
    (advice,) = card_advice(TrainingType.FLUX_LORA, MemoryTier.GB16)
    found = check_feasibility(job(), card("RTX 4080"))

    assert (advice.level, advice.message) == (Level.ERROR, "FLUX LoRA requires at least 24GB GPU memory")
    assert len(advice.recommendations) == 3
    assert (found.feasible, found.reason, found.plan) == (False, advice.message, None)


def test_flux_below_40_gb_is_a_warning_with_three_things_to_expect() -> None:
    """It is feasible all the same."""
    found = check_feasibility(job(), card("RTX 4090"))

    assert found.feasible
    assert [one.level for one in found.warnings] == [Level.WARNING]
    assert found.warnings[0].message == "FLUX training will be slow with aggressive memory optimizations"
    assert len(found.warnings[0].recommendations) == 3
    assert check_feasibility(job(), card("A100 80GB")).warnings == []


def test_the_tables_of_requirements_and_tiers() -> None:
    """What a backend shows its users."""
    flux, lora = REQUIREMENTS[TrainingType.FLUX_LORA], REQUIREMENTS[TrainingType.SDXL_LORA]
    rows = [(tier.tier, tier.batch_size, tier.pace, tier.speed) for tier in FLUX_TIERS]

    assert set(REQUIREMENTS) == set(TrainingType)
    assert (flux.minimum_gb, flux.recommended_gb, flux.usd_per_hour, flux.speed) == (24, 40, 3.50, 0.3)
    assert (lora.minimum_gb, lora.recommended_gb, lora.usd_per_hour, lora.speed) == (8, 16, 2.00, 1.0)
    assert rows == [("24gb", 1, "Slow", 1.0), ("40gb", 2, "Good", 1.4), ("80gb", 4, "Fast", 2.8)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(TrainingType),
    st.sampled_from(["RTX 3060", "T4", "RTX 4090", "A100 40GB", "H100", "B200"]),
    st.integers(4, 128),
    st.integers(1, 64),
    st.integers(1, 256),
)
def test_what_is_called_feasible_fits_the_card(kind: str, name: str, size: int, batch: int, rank: int) -> None:
    """And what is not has a reason."""
    try:
        wanted = job(kind, resolution=size * 16, batchSize=batch, loraRank=rank)
        found = check_feasibility(wanted, card(name))
    except ValueError:
        return
    if found.feasible:
        assert found.plan is not None
        assert found.plan.memory.peak_mib <= card(name).memory_mib
    else:
        assert found.reason
