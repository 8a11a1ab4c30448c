"""The counted work of training: the file is what the real modules still take."""

import warnings

import pytest

from training_presets.models import amount, training_law
from training_schemas.jobs import TrainingType
from training_schemas.spec import LoraTargets

pytestmark = pytest.mark.trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_file_has_what_flux_takes(checkpointing: bool) -> None:
    """Counted again at another size and rank than those that the laws were made from; so they are laws."""
    from benchmarks.workloads import FLUX_TARGETS, flux_counts, flux_tokens  # noqa: PLC0415

    warnings.simplefilter("ignore")
    size, rank = 768, 32
    targets = LoraTargets.ATTENTION
    counted = flux_counts(size, targets=FLUX_TARGETS[targets], rank=rank, checkpointed=checkpointing)
    law = training_law(TrainingType.FLUX_LORA, targets, checkpointing=checkpointing)
    units = flux_tokens(size)

    def by_law(quantity: tuple[float, float, float, float]) -> float:
        return amount(quantity, units, rank)

    # Newer versions of the libraries may take a little more or less.
    assert by_law(law.activations) == pytest.approx(counted.activations, rel=0.1)
    assert by_law(law.flops) == pytest.approx(counted.flops, rel=0.01)
    assert by_law(law.traffic) == pytest.approx(counted.traffic, rel=0.1)
    assert law.attention * units**2 == pytest.approx(counted.attention, rel=0.01)
    assert law.kernels == pytest.approx(counted.kernels, rel=0.1)
