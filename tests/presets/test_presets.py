"""The presets are a promise to users: these ten names, and these starting points."""

import msgspec
import pytest

from training_presets.presets import default_preset, presets
from training_schemas.jobs import CostOptimization, MemoryTier, ModelFamily
from training_schemas.spec import PARAMETERS
from training_schemas.validation import convert_strictly

# name: tier, batchSize, gradientAccumulationSteps, maxTrainSteps, loraRank
STARTING_POINTS = {
    "flux_24gb_aggressive": ("24gb", 1, 8, 500, 8),
    "flux_24gb_balanced": ("24gb", 1, 8, 1000, 16),
    "flux_40gb_aggressive": ("40gb", 2, 4, 500, 8),
    "flux_40gb_balanced": ("40gb", 2, 4, 1000, 16),
    "flux_40gb_quality": ("40gb", 2, 4, 2000, 32),
    "flux_80gb_balanced": ("80gb", 4, 2, 1000, 16),
    "flux_80gb_quality": ("80gb", 4, 2, 2000, 32),
    "sdxl_aggressive": (None, 4, 1, 500, 4),
    "sdxl_balanced": (None, 2, 1, 1000, 8),
    "sdxl_quality": (None, 1, 1, 2000, 16),
}


def test_the_presets_are_these_ten() -> None:
    """No name is lost, and none is added without its row above."""
    assert presets().keys() == STARTING_POINTS.keys()


@pytest.mark.parametrize("name", STARTING_POINTS)
def test_a_preset_starts_from_its_published_values(name: str) -> None:
    """Tier, micro-batch, accumulation, steps and rank are those of the documentation."""
    preset = presets()[name]
    keys = ("batchSize", "gradientAccumulationSteps", "maxTrainSteps", "loraRank")

    assert (preset.tier, *(preset.parameters[key] for key in keys)) == STARTING_POINTS[name]


@pytest.mark.parametrize("name", STARTING_POINTS)
def test_a_preset_alone_is_a_complete_set_of_parameters(name: str) -> None:
    """Nothing is left out, out of range or unknown: a job needs to set nothing more."""
    preset = presets()[name]

    parameters = convert_strictly(preset.parameters, PARAMETERS[preset.family])

    assert msgspec.to_builtins(parameters) == preset.parameters


def test_a_flux_step_sees_the_same_number_of_images_on_every_card() -> None:
    """What a larger card puts into its micro-batch, a smaller one accumulates: results do not depend on the card."""
    flux = [preset.parameters for preset in presets().values() if preset.family is ModelFamily.FLUX]

    assert {values["batchSize"] * values["gradientAccumulationSteps"] for values in flux} == {8}


@pytest.mark.parametrize("name", STARTING_POINTS)
def test_a_presets_name_has_its_family_and_its_tier(name: str) -> None:
    """The name is built as family, tier where it has one, and kind."""
    family, *tier, kind = name.split("_")
    preset = presets()[name]

    assert (preset.name, preset.family, [preset.tier] if preset.tier else []) == (name, family, tier)
    assert kind in set(CostOptimization)


@pytest.mark.parametrize(
    ("family", "tier", "optimization", "name"),
    [
        ("flux", "24gb", "aggressive", "flux_24gb_aggressive"),
        ("flux", "24gb", "quality", "flux_24gb_balanced"),
        ("flux", "40gb", "quality", "flux_40gb_quality"),
        ("flux", "80gb", "aggressive", "flux_80gb_balanced"),
        ("sdxl", "8gb", "aggressive", "sdxl_aggressive"),
        ("sdxl", "80gb", "quality", "sdxl_quality"),
    ],
)
def test_a_tier_without_the_wanted_kind_falls_back_to_balanced(
    family: str, tier: str, optimization: str, name: str
) -> None:
    """24 GB has no quality, 80 GB no aggressive one: the usual one replaces it."""
    found = default_preset(ModelFamily(family), MemoryTier(tier), CostOptimization(optimization))

    assert found.name == name
