"""What a job takes on each tier: its own and those above, and which of them is cheapest and which ends first."""

import pytest

from training_presets.estimates import choice_on, estimate_cost, reference_card
from training_presets.planner import plan_job
from training_presets.tier_estimates import cheapest, quickest, tier_estimates
from training_schemas.jobs import MemoryTier, TrainingJob, TrainingType
from training_schemas.spec import Execution


def job(kind: TrainingType = TrainingType.FLUX_LORA, gpu_count: int = 1) -> TrainingJob:
    """A job that sets no more than its type."""
    return TrainingJob(job_id="a", training_type=kind, dataset_path="/d", output_path="/o", gpu_count=gpu_count)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TrainingType)
def test_a_job_is_estimated_on_its_own_tier_and_on_all_above(kind: TrainingType) -> None:
    """Each with the settings that cost least on the card that the tier is priced by."""
    plan = plan_job(job(kind))

    found = tier_estimates(plan)

    assert [one.tier for one in found] == [tier for tier in MemoryTier if tier.gigabytes >= plan.tier.gigabytes]
    assert all(one.gain >= 1 and one.hours > 0 for one in found)
    assert all(one.peak_vram_mib <= reference_card(one.tier).memory_mib for one in found)


def test_the_first_of_them_is_the_estimate() -> None:
    """What a job is estimated to cost is what it will be trained with."""
    plan = plan_job(job())
    estimate, first = estimate_cost(plan), tier_estimates(plan)[0]

    assert (estimate.training_hours, estimate.estimated_cost_usd) == pytest.approx((first.hours, first.usd))
    assert estimate.peak_vram_gib * 1024 == first.peak_vram_mib


def test_the_cheapest_and_the_fastest_tier() -> None:
    """A job that waits for 24 GB ends first on an H100."""
    found = tier_estimates(plan_job(job()))

    assert quickest(found).tier is MemoryTier.GB80
    assert cheapest(found).usd == min(one.usd for one in found if one.usd is not None)
    assert quickest(found).hours == min(one.hours for one in found)


def test_several_cards_are_paid_for_together() -> None:
    """Two of them take about half of the time."""
    one, two = (tier_estimates(plan_job(job(gpu_count=count)))[-1] for count in (1, 2))

    assert two.usd is not None
    assert one.usd is not None
    assert 0.5 < two.hours / one.hours < 0.8
    assert two.usd == pytest.approx(2 * two.hours * (reference_card(MemoryTier.GB80).usd_per_hour or 0))


def test_what_does_not_fit_is_estimated_as_planned() -> None:
    """Whoever asks for a card that is too small is answered by its memory."""
    plan = plan_job(job())
    small = reference_card(MemoryTier.GB8)

    assert choice_on(plan, small).peak_mib <= small.memory_mib
    tiny = choice_on(plan, type(small)(name="x", memory_mib=4096, sustained_tflops=1, bandwidth_gbs=1))
    assert (tiny.parameters, tiny.execution) == (plan.parameters, Execution())
