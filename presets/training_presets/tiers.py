"""Tiers of GPU memory: what a GPU offers, what a type of training needs."""

from training_schemas.jobs import MemoryTier, TrainingType

# A GPU reports less than is printed on its box: ECC takes 1/16 of GDDR memory and the driver keeps a little (an A10G
# reports 22,731 MiB, a T4 15,095). No GPU's size lies in the gap below: the next smaller ones are 20, 12 and 11 GiB.
REPORTED_SHARE = 0.9

MINIMUM_TIERS = {
    TrainingType.FLUX_LORA: MemoryTier.GB24,
    TrainingType.SDXL_LORA: MemoryTier.GB8,
    TrainingType.SDXL_TEXTUAL_INVERSION: MemoryTier.GB8,
    TrainingType.SDXL_FINETUNE: MemoryTier.GB24,
}


def tier_of(memory_mib: int) -> MemoryTier | None:
    """The highest tier that a GPU with so many MiB offers; None below the lowest."""
    offered = [tier for tier in MemoryTier if memory_mib >= REPORTED_SHARE * tier.gigabytes * 1024]
    return offered[-1] if offered else None


def served_tiers(card: MemoryTier) -> list[MemoryTier]:
    """The tiers whose jobs fit a GPU of this tier, the most demanding first."""
    return [tier for tier in reversed(MemoryTier) if tier.gigabytes <= card.gigabytes]


def least_memory_mib(tier: MemoryTier) -> int:
    """What the smallest GPU of a tier reports, in MiB."""
    return int(REPORTED_SHARE * tier.gigabytes * 1024)
