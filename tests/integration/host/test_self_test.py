"""A real daemon, its self-test's real program, and a GPU that only NVML knows of."""

import asyncio

import pytest
from tests.support import real_training
from tests.support.fleet import Fleet
from tests.support.nvml import Host

from training_schemas.events import JobQueued, WorkerQuarantined

pytestmark = pytest.mark.trainer

# Seconds for all children: each loads torch.
LIMIT = 240

CARD = "card 0 24564 GPU-1 NVIDIA GeForce RTX 4090"


async def test_a_gpu_without_a_right_kernel_gets_no_jobs(fleet: Fleet, host: Host) -> None:
    """Torch finds no GPU here, so none of its kernels is right; the daemon's own look at the GPU is fine."""
    host.describe("driver 550.54.15", "cuda 12040", CARD)
    fleet.host = host.variables
    daemon = await fleet.start(engines=real_training.TRAINER)
    await fleet.submit("portrait")

    async with asyncio.timeout(LIMIT):
        while not daemon.logged("card_quarantined"):  # noqa: ASYNC110 - a log file has no such event
            await asyncio.sleep(0.5)
    (event,) = await fleet.all_events(1, WorkerQuarantined)

    assert isinstance(event, WorkerQuarantined)
    assert (event.gpu, event.recovered) == ("GPU-1", False)
    assert event.reason.startswith("no kernel of attention is right for diffusers: ")
    assert "attention.math unavailable (torch finds no GPU)" in event.reason
    await fleet.until("portrait", JobQueued)
    assert not daemon.logged("claimed")
