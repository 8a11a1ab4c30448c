"""The presets: named starting points for a job's settings."""

from functools import cache
from typing import Any

import msgspec

from training_presets.data import read_data
from training_schemas.jobs import CostOptimization, MemoryTier, ModelFamily, TrainingType


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """A starting point: settings by their names on the wire, and the tier that they are made for.

    ``by_type`` are settings for one type of training alone, and ``note`` is where the preset is not what it was
    meant to be at first, and why.
    """

    name: str
    tier: MemoryTier | None
    parameters: dict[str, Any]
    by_type: dict[TrainingType, dict[str, Any]] = {}
    note: str = ""

    @property
    def family(self) -> ModelFamily:
        """The family of base models that the preset is for."""
        return ModelFamily(self.name.partition("_")[0])

    @property
    def optimization(self) -> CostOptimization:
        """What the preset is after."""
        return CostOptimization(self.name.rpartition("_")[2])

    def parameters_for(self, training_type: TrainingType) -> dict[str, Any]:
        """The settings for a type of training."""
        return self.parameters | self.by_type.get(training_type, {})


@cache
def presets() -> dict[str, Preset]:
    """All presets by name, each with the defaults of its family filled in."""
    data = read_data("presets.toml")
    return {name: _preset(name, table, data) for name, table in data["presets"].items()}


def default_preset(family: ModelFamily, tier: MemoryTier, optimization: CostOptimization) -> Preset:
    """The preset of a job that names none; balanced where the tier has none of the wanted kind."""
    stem = f"flux_{tier}" if family is ModelFamily.FLUX else "sdxl"
    return presets().get(f"{stem}_{optimization}") or presets()[f"{stem}_{CostOptimization.BALANCED}"]


def _preset(name: str, table: dict[str, Any], data: dict[str, Any]) -> Preset:
    family = name.partition("_")[0]
    return Preset(
        name=name,
        tier=MemoryTier(table["tier"]) if "tier" in table else None,
        parameters=data["defaults"][family] | table["parameters"],
        by_type={TrainingType(kind): settings for kind, settings in data["types"].items()},
        note=table.get("note", ""),
    )
