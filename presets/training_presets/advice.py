"""Advice: what each type of training needs, what the tiers are good for, and what to advise for a GPU."""

from enum import StrEnum

import msgspec

from training_schemas.jobs import MemoryTier, TrainingType


class Level(StrEnum):
    """How serious a piece of advice is: an error is a reason not to train."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Advice(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Something that a person should know, and what they can do about it."""

    level: Level
    message: str
    recommendations: list[str] = []


class Requirements(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a type of training needs: GB of memory, US dollars an hour, and its speed, that of an SDXL LoRA being 1."""

    training_type: TrainingType
    minimum_gb: int
    recommended_gb: int
    usd_per_hour: float
    speed: float


class TierProfile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What FLUX training is like on the GPUs of a tier; ``speed`` is relative to 24 GB."""

    tier: MemoryTier
    cards: list[str]
    batch_size: int
    pace: str
    speed: float


REQUIREMENTS = {
    kind: Requirements(training_type=kind, minimum_gb=least, recommended_gb=advised, usd_per_hour=price, speed=speed)
    for kind, least, advised, price, speed in (
        (TrainingType.FLUX_LORA, 24, 40, 3.50, 0.3),
        (TrainingType.SDXL_LORA, 8, 16, 2.00, 1.0),
        (TrainingType.SDXL_TEXTUAL_INVERSION, 8, 16, 2.00, 1.1),
        (TrainingType.SDXL_FINETUNE, 24, 40, 3.50, 0.7),
    )
}

FLUX_TIERS = (
    TierProfile(tier=MemoryTier.GB24, cards=["RTX 4090", "A5000"], batch_size=1, pace="Slow", speed=1.0),
    TierProfile(tier=MemoryTier.GB40, cards=["A100"], batch_size=2, pace="Good", speed=1.4),
    TierProfile(tier=MemoryTier.GB80, cards=["H100", "A100 80GB"], batch_size=4, pace="Fast", speed=2.8),
)


def card_advice(training_type: TrainingType, tier: MemoryTier | None) -> list[Advice]:
    """Advice on training this on GPUs of a tier, None being less than the lowest; empty if all is well."""
    needs = REQUIREMENTS[training_type]
    gigabytes = 0 if tier is None else tier.gigabytes
    if training_type is TrainingType.FLUX_LORA:
        return _flux_advice(gigabytes, needs)
    name = str(training_type).replace("_", " ").title().replace("Sdxl", "SDXL").replace("Lora", "LoRA")
    if gigabytes < needs.minimum_gb:
        message = f"{name} requires at least {needs.minimum_gb}GB GPU memory"
        return [Advice(level=Level.ERROR, message=message, recommendations=[f"Use a GPU of {needs.recommended_gb} GB"])]
    if gigabytes < needs.recommended_gb:
        message = f"{name} will be slow below {needs.recommended_gb}GB GPU memory"
        return [Advice(level=Level.WARNING, message=message, recommendations=["Expect smaller batches and all caches"])]
    return []


def _flux_advice(gigabytes: int, needs: Requirements) -> list[Advice]:
    if gigabytes < needs.minimum_gb:
        return [
            Advice(
                level=Level.ERROR,
                message="FLUX LoRA requires at least 24GB GPU memory",
                recommendations=[
                    "Train an SDXL LoRA instead: it fits 8 GB",
                    "Use a GPU with 24 GB or more, such as an RTX 4090 or an RTX A5000",
                    "Rent a cloud GPU: an A100 or an H100 by the hour",
                ],
            )
        ]
    if gigabytes < needs.recommended_gb:
        return [
            Advice(
                level=Level.WARNING,
                message="FLUX training will be slow with aggressive memory optimizations",
                recommendations=[
                    "Expect it to take 2-3x longer than on 40 GB",
                    "Use batch size 1 with high gradient accumulation",
                    "Enable all caches: text encoder and VAE outputs",
                ],
            )
        ]
    return []
