"""Which card takes what: only what fits, the most demanding first, and no card idle while a job that fits it waits."""

from collections import Counter
from itertools import pairwise

import pytest
from tests.support.fleet import CARD_8, CARD_24, CARD_80, Fleet

from training_schemas.events import JobClaimed, JobCompleted
from training_schemas.jobs import MemoryTier

pytestmark = pytest.mark.broker

NEEDS = {"FLUX_LORA": "24gb", "SDXL_LORA": "8gb", "SDXL_TEXTUAL_INVERSION": "8gb", "SDXL_FINETUNE": "24gb"}


async def claims(fleet: Fleet, count: int) -> list[JobClaimed]:
    """The first claims."""
    return [event for event in await fleet.all_events(count, JobClaimed) if isinstance(event, JobClaimed)]


async def test_sixty_mixed_jobs_find_cards_that_fit_and_no_card_idles(fleet: Fleet) -> None:
    """Three daemons of 8, 24 and 80 GB empty the queues together; no job lands on a card too small for it."""
    kinds = [*NEEDS, "FLUX_LORA"]
    needs = {}
    for number in range(60):
        kind = kinds[number % len(kinds)]
        tier = "80gb" if number % 15 == 4 else NEEDS[kind]
        needs[f"job-{number}"] = MemoryTier(tier)
        await fleet.submit(f"job-{number}", kind, gpu_memory_tier=tier)

    for worker, card in (("small", CARD_8), ("middle", CARD_24), ("large", CARD_80)):
        await fleet.start(worker, gpus=[card])
    taken = await claims(fleet, 60)
    await fleet.all_events(60, JobCompleted)

    assert len({event.job_id for event in taken}) == 60
    misplaced = [e.job_id for e in taken if (e.gpu.tier or MemoryTier.GB8).gigabytes < needs[e.job_id].gigabytes]
    assert misplaced == []
    by_worker = Counter(event.worker for event in taken)
    assert set(by_worker) == {"small", "middle", "large"}
    # While jobs that fit it waited, no card went without for longer than the others took two each.
    eligible = {"small": 8, "middle": 24, "large": 80}
    waiting = [needs[event.job_id].gigabytes for event in taken]
    for worker, gigabytes in eligible.items():
        places = [number for number, event in enumerate(taken) if event.worker == worker]
        last_fit = max(number for number, need in enumerate(waiting) if need <= gigabytes)
        gaps = [after - before for before, after in pairwise(places) if after <= last_fit]
        assert max(gaps, default=0) <= 12, (worker, places)


async def test_a_card_takes_the_most_demanding_job_that_it_can(fleet: Fleet) -> None:
    """A big card that finds jobs of all sizes waiting begins with the big ones."""
    for number, tier in enumerate(("8gb", "16gb", "24gb", "40gb", "80gb")):
        await fleet.submit(f"job-{number}", "SDXL_LORA", gpu_memory_tier=tier)
    daemon = await fleet.start("w0", gpus=[CARD_8])
    await daemon.until_logged("queued", 5)
    await daemon.until_logged("job_ended")
    for number, tier in enumerate(("8gb", "16gb", "24gb", "40gb", "80gb"), start=5):
        await fleet.submit(f"job-{number}", "SDXL_LORA", gpu_memory_tier=tier)
    await daemon.until_logged("queued", 10)
    await daemon.until_logged("job_ended", 2)

    await fleet.start("large", gpus=[CARD_80])
    taken = [event for event in await claims(fleet, 10) if event.worker == "large"]

    assert [event.job_id for event in taken] == ["job-4", "job-9", "job-3", "job-8", "job-2", "job-7", "job-1", "job-6"]


async def test_an_idle_small_card_is_preferred_to_an_idle_big_one(fleet: Fleet) -> None:
    """The big card is the overflow: it gets a small job only when the small card is busy."""
    await fleet.start("large", gpus=[CARD_80], mode="slow")
    await fleet.start("small", gpus=[CARD_8], mode="slow")
    for worker in ("large", "small"):
        # Both are idle, that is, they consume; a sweep would not look at priorities.
        await fleet.submit(f"warm-{worker}", "SDXL_LORA", max_train_steps=1)
    await fleet.all_events(2, JobCompleted)

    await fleet.submit("first", "SDXL_LORA", max_train_steps=40)
    await fleet.until("first", JobClaimed)
    await fleet.submit("second", "SDXL_LORA", max_train_steps=1)
    taken = {event.job_id: event.worker for event in await claims(fleet, 4)}

    assert (taken["first"], taken["second"]) == ("small", "large")


async def test_a_job_that_fits_no_card_waits(fleet: Fleet) -> None:
    """A daemon never takes what its card cannot train, however idle it is."""
    daemon = await fleet.start(gpus=[CARD_8])
    await fleet.submit("big", "FLUX_LORA")
    await daemon.until_logged("queued")
    await fleet.submit("small", "SDXL_LORA")
    await fleet.events("small")

    assert await fleet.depth(f"{fleet.names.prefix}.tier.flux.24gb") == 1
    assert [entry["job"] for entry in daemon.logged("claimed")] == ["small"]
