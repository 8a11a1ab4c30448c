"""Which GPU consumes what: only what fits, the most demanding first, and no GPU idle while a job that fits it waits."""

from collections import Counter
from itertools import pairwise

import pytest
from tests.support.fleet import GPU_8, GPU_24, GPU_80, Fleet

from training_presets.cards import usd_per_hour
from training_schemas.events import JobClaimed, JobCompleted, JobQueued
from training_schemas.jobs import MemoryTier, ModelFamily

pytestmark = pytest.mark.broker

NEEDS = {"FLUX_LORA": "24gb", "SDXL_LORA": "8gb", "SDXL_TEXTUAL_INVERSION": "8gb", "SDXL_FINETUNE": "24gb"}


async def claims(fleet: Fleet, count: int) -> list[JobClaimed]:
    """The first claims."""
    return [event for event in await fleet.all_events(count, JobClaimed) if isinstance(event, JobClaimed)]


async def test_sixty_mixed_jobs_find_gpus_that_fit_and_no_gpu_idles(fleet: Fleet) -> None:
    """Three daemons of 8, 24 and 80 GB empty the queues together; no job lands on a GPU too small for it."""
    kinds = [*NEEDS, "FLUX_LORA"]
    needs = {}
    for number in range(60):
        kind = kinds[number % len(kinds)]
        tier = "80gb" if number % 15 == 4 else NEEDS[kind]
        needs[f"job-{number}"] = MemoryTier(tier)
        await fleet.submit(f"job-{number}", kind, gpu_memory_tier=tier)

    for worker, device in (("small", GPU_8), ("middle", GPU_24), ("large", GPU_80)):
        await fleet.start(worker, gpus=[device])
    claimed = await claims(fleet, 60)
    await fleet.all_events(60, JobCompleted)

    assert len({event.job_id for event in claimed}) == 60
    misplaced = [e.job_id for e in claimed if (e.gpu.tier or MemoryTier.GB8).gigabytes < needs[e.job_id].gigabytes]
    assert misplaced == []
    by_worker = Counter(event.worker for event in claimed)
    assert set(by_worker) == {"small", "middle", "large"}
    # While jobs that fit it waited, no GPU went without for longer than the others consumed two each.
    eligible = {"small": 8, "middle": 24, "large": 80}
    waiting = [needs[event.job_id].gigabytes for event in claimed]
    for worker, gigabytes in eligible.items():
        places = [number for number, event in enumerate(claimed) if event.worker == worker]
        last_fit = max(number for number, need in enumerate(waiting) if need <= gigabytes)
        gaps = [after - before for before, after in pairwise(places) if after <= last_fit]
        assert max(gaps, default=0) <= 12, (worker, places)


async def test_a_gpu_consumes_the_most_demanding_job_that_it_can(fleet: Fleet) -> None:
    """A big GPU that finds jobs of all sizes waiting begins with the big ones."""
    for number, tier in enumerate(("8gb", "16gb", "24gb", "40gb", "80gb")):
        await fleet.submit(f"job-{number}", "SDXL_LORA", gpu_memory_tier=tier)
    daemon = await fleet.start("w0", gpus=[GPU_8])
    await daemon.until_logged("queued", 5)
    await daemon.until_logged("job_ended")
    for number, tier in enumerate(("8gb", "16gb", "24gb", "40gb", "80gb"), start=5):
        await fleet.submit(f"job-{number}", "SDXL_LORA", gpu_memory_tier=tier)
    await daemon.until_logged("queued", 10)
    await daemon.until_logged("job_ended", 2)

    await fleet.start("large", gpus=[GPU_80])
    claimed = [event for event in await claims(fleet, 10) if event.worker == "large"]

    assert [event.job_id for event in claimed] == [
        "job-4",
        "job-9",
        "job-3",
        "job-8",
        "job-2",
        "job-7",
        "job-1",
        "job-6",
    ]


async def test_an_idle_small_gpu_is_preferred_to_an_idle_big_one(fleet: Fleet) -> None:
    """The big GPU is the overflow: it gets a small job only when the small GPU is busy."""
    await fleet.start("large", gpus=[GPU_80], mode="slow")
    await fleet.start("small", gpus=[GPU_8], mode="slow")
    for worker in ("large", "small"):
        # Both are idle, that is, they consume; a sweep would not look at priorities.
        await fleet.submit(f"warm-{worker}", "SDXL_LORA", max_train_steps=1)
    await fleet.all_events(2, JobCompleted)

    await fleet.submit("first", "SDXL_LORA", max_train_steps=40)
    await fleet.until("first", JobClaimed)
    await fleet.submit("second", "SDXL_LORA", max_train_steps=1)
    claimed = {event.job_id: event.worker for event in await claims(fleet, 4)}

    assert (claimed["first"], claimed["second"]) == ("small", "large")


async def test_a_job_that_fits_no_gpu_waits(fleet: Fleet) -> None:
    """A daemon never consumes what its GPU cannot train, however idle it is."""
    daemon = await fleet.start(gpus=[GPU_8])
    await fleet.submit("big", "FLUX_LORA")
    await daemon.until_logged("queued")
    await fleet.submit("small", "SDXL_LORA")
    await fleet.events("small")

    assert await fleet.depth(f"{fleet.names.prefix}.tier.flux.24gb") == 1
    assert [entry["job"] for entry in daemon.logged("claimed")] == ["small"]


async def test_gpus_that_work_together_consume_the_jobs_that_need_as_many(fleet: Fleet) -> None:
    """And no others: neither is a group half idle, nor does one GPU begin what needs two. Both GPUs are paid for."""
    await fleet.submit("pair", "SDXL_LORA", gpu_count=2)
    await fleet.submit("single", "SDXL_LORA")
    alone = await fleet.start("alone", gpus=[GPU_24])
    await fleet.until("single", JobCompleted)
    await alone.until_logged("queued", 2)
    assert await fleet.depth(fleet.names.tier_queue(ModelFamily.SDXL, MemoryTier.GB8, 2)) == 1

    await fleet.start("together", gpus=[GPU_24, GPU_24], gpus_per_job=2)
    events = await fleet.events("pair")

    claimed = next(event for event in events if isinstance(event, JobClaimed))
    assert (claimed.worker, claimed.gpu.uuid, claimed.gpu.count) == ("together", "SIMULATED-0,SIMULATED-1", 2)
    completed, queued = events[-1], next(event for event in events if isinstance(event, JobQueued))
    assert isinstance(completed, JobCompleted)
    assert queued.gpu_count == 2
    price = usd_per_hour("NVIDIA GeForce RTX 4090", 24564, {})
    assert price is not None
    assert completed.usage.cost_usd == pytest.approx(completed.usage.gpu_seconds / 3600 * price)


async def test_a_job_for_several_gpus_that_fails_is_tried_again_there(fleet: Fleet) -> None:
    """Its way back to its queue is that of its key, like everybody's."""
    await fleet.start("together", gpus=[GPU_24, GPU_24], gpus_per_job=2, mode="crash")
    await fleet.submit("pair", "SDXL_LORA", gpu_count=2, max_attempts=2)

    events = await fleet.events("pair")

    assert [event.attempt for event in events if isinstance(event, JobClaimed)] == [1, 2]
