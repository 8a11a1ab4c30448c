"""Watt-hours of a job, from its GPU's counter."""

import pytest
from tests.support.fleet import Fleet
from tests.support.nvml import Host

from training_schemas.events import JobCompleted, JobProgress

GPU = "gpu 0 24564 GPU-1 NVIDIA GeForce RTX 4090"


@pytest.mark.parametrize(
    ("before", "after", "energy_wh"),
    [
        pytest.param(["energy 1000000"], ["energy 37000000"], 10.0, id="counted"),
        pytest.param(["energy 37000000"], ["energy 1000"], None, id="driver-reloaded"),
        pytest.param(["energy 37000000"], ["hang"], None, id="driver-hangs"),
        pytest.param([], [], None, id="no-counter"),
    ],
)
async def test_a_job_ends_with_its_energy(
    fleet: Fleet, host: Host, before: list[str], after: list[str], energy_wh: float | None
) -> None:
    """In its own usage and in that of its attempt; left out where it is not known."""
    host.describe(GPU, *before)
    fleet.host = host.variables
    await fleet.start(mode="slow", card_check_interval=600)
    await fleet.submit("portrait", max_train_steps=40)
    await fleet.until("portrait", JobProgress)

    host.describe(GPU, *after)
    completed = await fleet.until("portrait", JobCompleted)

    assert isinstance(completed, JobCompleted)
    assert completed.usage.energy_wh == energy_wh
    assert [attempt.usage.energy_wh for attempt in completed.attempts] == [energy_wh]
