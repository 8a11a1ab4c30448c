"""Which preset to take for a budget, and whether a card will do at all."""

from typing import Any, TypedDict

import msgspec

from training_presets.advice import Advice, Level, card_advice
from training_presets.cards import CardSpec
from training_presets.estimates import CostEstimate, estimate_cost
from training_presets.planner import JOB_PARAMETERS, DoesNotFitError, Plan, fit, plan_job
from training_presets.presets import Preset, presets
from training_presets.tier_estimates import TierEstimate, cheapest, quickest, tier_estimates
from training_presets.tiers import MINIMUM_TIERS, tier_of
from training_schemas.jobs import CostOptimization, TrainingJob, TrainingType

# What is nearest to what somebody would rather have.
PREFERRED = {
    CostOptimization.AGGRESSIVE: (CostOptimization.AGGRESSIVE, CostOptimization.BALANCED, CostOptimization.QUALITY),
    CostOptimization.BALANCED: (CostOptimization.BALANCED, CostOptimization.QUALITY, CostOptimization.AGGRESSIVE),
    CostOptimization.QUALITY: (CostOptimization.QUALITY, CostOptimization.BALANCED, CostOptimization.AGGRESSIVE),
}


class Recommendation(TypedDict):
    """A preset, with its settings as `create_simple_job` takes them, and what it takes on its tier's card.

    ``cheapest`` and ``fastest`` are the tiers, from its own on, on which it costs least and ends first.
    """

    preset: str
    config: dict[str, Any]
    estimate: CostEstimate
    cheapest: TierEstimate
    fastest: TierEstimate
    note: str


class Recommendations(TypedDict):
    """Presets within a budget in US dollars, the best first; ``cheapest`` is the least of all, within it or not."""

    training_type: TrainingType
    budget_usd: float | None
    quality_preference: CostOptimization
    recommendations: list[Recommendation]
    cheapest: Recommendation


class Feasibility(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whether a job can be trained on a card, and how: with which plan, or what would fit instead."""

    feasible: bool
    plan: Plan | None
    estimate: CostEstimate | None
    reason: str | None
    nearest: list[str]
    warnings: list[Advice]


def recommend_presets(
    training_type: TrainingType, budget_usd: float | None, preference: CostOptimization
) -> Recommendations:
    """Presets of a training type, within a budget if there is one: what was asked for first, then the cheapest."""
    order = PREFERRED[preference]
    every = [
        (order.index(preset.optimization), _recommend(training_type, preset))
        for preset in presets().values()
        if preset.family is training_type.family and _is_enough(training_type, preset)
    ]
    within = [(rank, one) for rank, one in every if budget_usd is None or _cost(one) <= budget_usd]
    return Recommendations(
        training_type=training_type,
        budget_usd=budget_usd,
        quality_preference=preference,
        recommendations=[one for _, one in sorted(within, key=lambda pair: (pair[0], _cost(pair[1])))],
        cheapest=min((one for _, one in every), key=_cost),
    )


def check_feasibility(job: TrainingJob, card: CardSpec) -> Feasibility:
    """Whether a job can be trained on a card. Raises `InvalidMessageError` if it cannot be trained on any."""
    tier = tier_of(card.memory_mib)
    warnings = card_advice(job.training_type, tier)
    plan = plan_job(job)
    refusal = next((advice.message for advice in warnings if advice.level is Level.ERROR), None)
    try:
        fitted = fit(plan, card.memory_mib)
    except DoesNotFitError as error:
        return _infeasible(refusal or str(error), error.nearest, warnings)
    if refusal is not None or tier is None:
        least = MINIMUM_TIERS[job.training_type]
        return _infeasible(refusal or "the GPU is smaller than any tier", [f"gpuMemoryTier {least}"], warnings)
    placed = msgspec.structs.replace(fitted, tier=tier)
    return Feasibility(
        feasible=True, plan=placed, estimate=estimate_cost(placed, card), reason=None, nearest=[], warnings=warnings
    )


def _infeasible(reason: str, nearest: list[str], warnings: list[Advice]) -> Feasibility:
    return Feasibility(feasible=False, plan=None, estimate=None, reason=reason, nearest=nearest, warnings=warnings)


def _is_enough(training_type: TrainingType, preset: Preset) -> bool:
    return preset.tier is None or preset.tier.gigabytes >= MINIMUM_TIERS[training_type].gigabytes


def _recommend(training_type: TrainingType, preset: Preset) -> Recommendation:
    job = TrainingJob(
        job_id="estimate", training_type=training_type, dataset_path="/", output_path="/", preset=preset.name
    )
    plan = plan_job(job)
    tiers = tier_estimates(plan)
    return Recommendation(
        preset=preset.name,
        config=_config(plan, preset),
        estimate=estimate_cost(plan),
        cheapest=cheapest(tiers),
        fastest=quickest(tiers),
        note=preset.note,
    )


def _config(plan: Plan, preset: Preset) -> dict[str, Any]:
    """A plan's settings as a job gives them."""
    settings = {name: _plain(value) for name, value in msgspec.structs.asdict(plan.parameters).items()}
    own = {name: settings.pop(name) for name in JOB_PARAMETERS}
    return {"preset": preset.name, "gpu_memory_tier": str(plan.tier), **own, "config_overrides": settings}


def _plain(value: Any) -> Any:
    """Names as text, not as members of an enumeration."""
    return str(value) if isinstance(value, str) else value


def _cost(one: Recommendation) -> float:
    cost = one["estimate"].estimated_cost_usd
    return float("inf") if cost is None else cost
