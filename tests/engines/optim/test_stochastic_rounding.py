"""Weights of 16 bits that are stepped as if they had 32."""

import pytest
import torch
from msgspec.structs import replace
from tests.engines.conftest import SDXL_PARAMETERS
from tests.engines.trainers import BuildTrainer, take_steps, weights

from training_schemas.jobs import TrainingType
from training_schemas.spec import WeightDtype
from training_worker.engines.diffusers.optim.stochastic_rounding import round_stochastically, step_with_rounding

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize("value", [1.001, -1.001, 3.3e-5, 255.9])
def test_the_mean_of_many_roundings_is_the_exact_value(value: float) -> None:
    """And each of them is one of its two neighbours."""
    rounded = round_stochastically(torch.full((100_000,), value), torch.Generator().manual_seed(0))

    assert len(set(rounded.tolist())) == 2
    assert pytest.approx(value, rel=1e-4) == rounded.double().mean().item()


def test_a_value_that_needs_no_rounding_stays() -> None:
    """Also zero, and what is largest."""
    values = torch.tensor([0.0, 1.0, -2.5, torch.finfo(torch.bfloat16).max])

    assert values.tolist() == round_stochastically(values, torch.Generator().manual_seed(0)).tolist()


def test_small_steps_add_up() -> None:
    """A thousand steps of a thousandth of bfloat16's spacing make one of it; plain rounding makes none."""
    weight = torch.nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=2**-7 / 1000)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        weight.grad = -torch.ones_like(weight)
        step_with_rounding(optimizer, generator)

    assert torch.bfloat16 == weight.dtype
    assert pytest.approx(1 + 2**-7, abs=2**-10) == weight.double().mean().item()


def test_the_optimizer_has_its_groups_back() -> None:
    """Each weight is stepped at its own group's rate."""
    first, second = (torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": [second], "lr": 2.0}])
    first.grad = second.grad = torch.ones(3, dtype=torch.bfloat16)
    step_with_rounding(optimizer, torch.Generator())

    assert ([-1.0] * 3, [-2.0] * 3) == (first.tolist(), second.tolist())
    assert [[first], [second]] == [group["params"] for group in optimizer.param_groups]


def test_a_finetune_in_16_bits_learns_from_steps_too_small_for_them(build: BuildTrainer) -> None:
    """A step is less than a tenth of bfloat16's spacing at 0.1: rounded to the nearest, no weight would move."""
    settings = replace(
        SDXL_PARAMETERS, weight_dtype=WeightDtype.BFLOAT16, learning_rate=2e-5, weight_decay=0.0, max_grad_norm=1.0
    )
    trainer = build(settings, TrainingType.SDXL_FINETUNE)
    before = weights(trainer)
    take_steps(trainer, 1, 4)

    large = {name: weight.abs() > 0.1 for name, weight in before.items()}
    moved = sum(int((weight != before[name])[large[name]].sum()) for name, weight in weights(trainer).items())

    # The first steps of Adam are as large as its rate: four cross the gap, 2^-11 or more, with odds of a sixth at most.
    assert moved > 0.02 * sum(int(mask.sum()) for mask in large.values())
