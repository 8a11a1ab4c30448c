"""What a card offers, by the MiB that it reports, not by what is printed on its box."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_presets.tiers import MINIMUM_TIERS, served_tiers, tier_of
from training_schemas.jobs import MemoryTier, TrainingType


@pytest.mark.parametrize(
    ("card", "memory_mib", "tier"),
    [
        ("RTX 4060", 8188, "8gb"),
        ("RTX 3080", 10240, "8gb"),
        ("RTX 3060", 12288, "8gb"),
        ("T4 with ECC", 15095, "16gb"),
        ("T4", 15360, "16gb"),
        ("V100 16 GB", 16160, "16gb"),
        ("RTX 4000 Ada", 20475, "16gb"),
        ("A10G with ECC", 22731, "24gb"),
        ("A10G", 23028, "24gb"),
        ("L4", 23034, "24gb"),
        ("RTX 4090", 24564, "24gb"),
        ("RTX A5000", 24564, "24gb"),
        ("RTX 3090", 24576, "24gb"),
        ("V100 32 GB", 32510, "24gb"),
        ("RTX 5090", 32607, "24gb"),
        ("A100 40 GB, one driver", 40536, "40gb"),
        ("A100 40 GB, another", 40960, "40gb"),
        ("A40 with ECC", 45634, "40gb"),
        ("A40", 46068, "40gb"),
        ("L40S", 46068, "40gb"),
        ("RTX A6000", 49140, "40gb"),
        ("A100 80 GB, one driver", 81251, "80gb"),
        ("H100", 81559, "80gb"),
        ("A100 80 GB, another", 81920, "80gb"),
        ("H100 NVL", 95830, "80gb"),
        ("H200", 143771, "80gb"),
        ("B200", 183359, "80gb"),
        ("MIG 1g.10gb", 9728, "8gb"),
        ("MIG 3g.40gb", 40192, "40gb"),
        ("GT 1030", 2048, None),
        ("GTX 1060 6 GB", 6144, None),
    ],
)
def test_a_real_card_offers_the_tier_on_its_box(card: str, memory_mib: int, tier: str | None) -> None:
    """A card that reports a tenth less than its nominal size still counts; nothing rounds up further than that."""
    assert tier_of(memory_mib) == tier


@given(st.integers(0, 300_000), st.integers(0, 300_000))
def test_more_memory_never_gives_a_lower_tier(memory_mib: int, more: int) -> None:
    """A card does at least what a smaller one does."""
    smaller, larger = tier_of(memory_mib), tier_of(memory_mib + more)

    assert (smaller.gigabytes if smaller else 0) <= (larger.gigabytes if larger else 0)


@given(st.sampled_from(MemoryTier))
def test_a_card_of_nominal_size_offers_its_tier(tier: MemoryTier) -> None:
    """Whatever the share is that a driver keeps, a card that reports all of its box is in."""
    assert tier_of(tier.gigabytes * 1024) == tier


def test_a_card_serves_the_most_demanding_jobs_first() -> None:
    """Its own tier, then each lower one: small jobs must not keep the only large card busy."""
    assert served_tiers(MemoryTier.GB24) == ["24gb", "16gb", "8gb"]
    assert served_tiers(MemoryTier.GB80) == ["80gb", "40gb", "24gb", "16gb", "8gb"]
    assert served_tiers(MemoryTier.GB8) == ["8gb"]


def test_every_type_of_training_has_a_minimum_tier() -> None:
    """A new training type comes with what it needs."""
    assert set(TrainingType) == MINIMUM_TIERS.keys()
    assert MINIMUM_TIERS[TrainingType.FLUX_LORA] == "24gb"
    assert MINIMUM_TIERS[TrainingType.SDXL_FINETUNE] == "24gb"
    assert MINIMUM_TIERS[TrainingType.SDXL_LORA] == MINIMUM_TIERS[TrainingType.SDXL_TEXTUAL_INVERSION] == "8gb"
