"""The advisor: questions before a job is submitted. Nothing here needs a broker, a GPU or a data set."""

from enum import StrEnum
from typing import TypeVar, Unpack

import msgspec

from training_presets.advice import FLUX_TIERS, REQUIREMENTS, Requirements, TierProfile
from training_presets.cards import CardSpec, catalogue, named_card
from training_presets.estimates import CostEstimate, estimate_cost
from training_presets.planner import plan_job
from training_presets.recommendations import Feasibility, Recommendations, check_feasibility, recommend_presets
from training_schemas.jobs import CostOptimization, TrainingJob, TrainingType
from training_schemas.validation import refused
from training_worker.client.job_builder import JobFields, make_job

Choice = TypeVar("Choice", bound=StrEnum)


class HardwareInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs that plans know, and what FLUX training is like on each tier of them."""

    cards: list[CardSpec]
    flux_tiers: list[TierProfile]


class Advisor:
    """Answers at once, from the catalogue and the models of memory and time."""

    def create_simple_job(self, training_type: str, **fields: Unpack[JobFields]) -> TrainingJob:
        """Return a valid job of any type. Raises `InvalidMessageError` with the path of every fault."""
        return make_job(training_type, **fields)

    def estimate_job_cost(self, job: TrainingJob, *, gpu: str | None = None, images: int = 20) -> CostEstimate:
        """Estimate what a job takes on a GPU, else on the one that its tier is priced by.

        Raises `InvalidMessageError` if the job cannot be planned, or the GPU is unknown.
        """
        return estimate_cost(plan_job(job), None if gpu is None else _card(gpu), images=images)

    def check_training_feasibility(self, job: TrainingJob, *, gpu: str) -> Feasibility:
        """Check whether a job can be trained on a GPU, and how, or what could be. Raises `InvalidMessageError`."""
        card = _card(gpu)
        return check_feasibility(job, card)

    def get_preset_recommendations(
        self, training_type: str, budget_usd: float | None = None, quality_preference: str = "balanced"
    ) -> Recommendations:
        """Return presets within a budget in US dollars, the best first. Raises `InvalidMessageError`."""
        return recommend_presets(
            _member("trainingType", training_type, TrainingType),
            budget_usd,
            _member("qualityPreference", quality_preference, CostOptimization),
        )

    def get_supported_training_types(self) -> list[Requirements]:
        """Return what can be trained, and what each type needs."""
        return list(REQUIREMENTS.values())

    def get_hardware_info(self) -> HardwareInfo:
        """Return the catalogue of GPUs, and the tiers."""
        return HardwareInfo(cards=list(catalogue().cards), flux_tiers=list(FLUX_TIERS))


def _card(name: str) -> CardSpec:
    if (card := named_card(name)) is None:
        raise refused("gpu", f"unknown GPU {name!r}")
    return card


def _member(path: str, value: str, kind: type[Choice]) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise refused(path, f"unknown {value!r}; one of {', '.join(map(str, kind))}") from None
