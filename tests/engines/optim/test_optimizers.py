"""Optimizers by their names."""

import pytest
import torch
from msgspec.structs import replace
from tests.engines.conftest import PARAMETERS

from training_schemas.spec import OptimizerName
from training_worker.engines.diffusers.optim.optimizers import make_optimizer

pytestmark = pytest.mark.trainer


def test_adamw_steps_all_weights_in_one_kernel() -> None:
    """By the same formula as one operation after the other, but for rounding."""
    settings = replace(PARAMETERS, optimizer=OptimizerName.ADAMW)
    weights = [[torch.nn.Parameter(torch.linspace(-1, 1, 40).view(4, 10))] for _ in range(2)]
    fused = make_optimizer([{"params": weights[0], "lr": 0.01}], settings)
    plain = torch.optim.AdamW([{"params": weights[1], "lr": 0.01}], weight_decay=settings.weight_decay)
    for _ in range(3):
        for (weight,), optimizer in zip(weights, (fused, plain), strict=True):
            weight.grad = weight.detach().square()
            optimizer.step()

    assert fused.param_groups[0]["fused"]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)


def test_a_state_from_before_it_was_fused_goes_on() -> None:
    """Older checkpoints hold the same names."""
    settings = replace(PARAMETERS, optimizer=OptimizerName.ADAMW)
    weights = [torch.nn.Parameter(torch.ones(4, 10)) for _ in range(2)]
    old = torch.optim.AdamW([{"params": [weights[0]], "lr": 0.01}], weight_decay=settings.weight_decay)
    new = make_optimizer([{"params": [weights[1]], "lr": 0.01}], settings)
    weights[0].grad = torch.ones(4, 10)
    old.step()

    saved = {**old.state_dict()["param_groups"][0]}
    own = new.state_dict()["param_groups"][0]
    numbers = {key: value for key, value in saved.items() if value is not None and key != "fused"}
    new.load_state_dict({"state": old.state_dict()["state"], "param_groups": [{**own, **numbers}]})
    weights[1].grad = torch.ones(4, 10)
    new.step()

    state = new.state[weights[1]]
    assert {"step", "exp_avg", "exp_avg_sq"} == set(state)
    assert 2 == state["step"].item()
