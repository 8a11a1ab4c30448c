"""Which GPU takes what: sixty mixed jobs that wait, three daemons of 8, 24 and 80 GB.

    python -m benchmarks.routing

The trainer does nothing, so that what is seen is which jobs each GPU claims. A GPU's longest wait is the longest time
between the end of one of its jobs and its next claim, as long as a job that fits it waits.
"""

import asyncio
import os
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tests.support.fleet import GPU_8, GPU_24, GPU_80, Fleet

from benchmarks.report import print_row
from training_schemas.events import Event, JobClaimed, JobCompleted, decode_event
from training_worker.broker.event_log import read_log
from training_worker.testing.local_broker import find_broker

CARDS = {"8 GB card": GPU_8, "24 GB card": GPU_24, "80 GB card": GPU_80}
MIX = [
    ("FLUX_LORA", "24gb"),
    ("SDXL_LORA", "8gb"),
    ("SDXL_TEXTUAL_INVERSION", "8gb"),
    ("SDXL_FINETUNE", "24gb"),
    ("FLUX_LORA", "80gb"),
]
JOBS = 60


async def measure(fleet: Fleet) -> None:
    """Run the jobs and print a row for each GPU."""
    needs = {}
    for number in range(JOBS):
        kind, tier = MIX[number % len(MIX)]
        needs[f"job-{number}"] = tier
        await fleet.submit(f"job-{number}", kind, gpu_memory_tier=tier)
    for name, device in CARDS.items():
        await fleet.start(name.replace(" ", "-"), gpus=[device])
    await fleet.all_events(JOBS, JobCompleted)
    moments = await read_moments(fleet)
    claims = [event for _, event in moments if isinstance(event, JobClaimed)]
    for name in CARDS:
        taken = Counter(needs[event.job_id] for event in claims if event.worker == name.replace(" ", "-"))
        jobs = ", ".join(f"{count} x {tier}" for tier, count in sorted(taken.items()))
        print_row(name, f"{jobs}; longest wait {1e3 * longest_wait(moments, needs, name):.0f} ms")
    bad = [event for event in claims if gigabytes(event.gpu.tier) < gigabytes(needs[event.job_id])]
    print_row("placed on a GPU too small", str(len(bad)))


async def read_moments(fleet: Fleet) -> list[tuple[float, Event]]:
    """The claims and completions of all jobs, in their order, with their times."""
    moments: list[tuple[float, Event]] = []
    async with fleet.session() as session:
        async for body in read_log(session, fleet.names.events_log, 0):
            envelope = decode_event(body)
            event = envelope.read()
            if isinstance(event, JobClaimed | JobCompleted):
                moments.append((envelope.time.timestamp(), event))
            if len(moments) == 2 * JOBS:
                return moments
    raise AssertionError  # the log goes on for ever


def longest_wait(moments: list[tuple[float, Event]], needs: dict[str, str], name: str) -> float:
    """Seconds that a GPU was idle at most while a job that fits it waited."""
    size = int(name.partition(" ")[0])
    fits = [time for time, event in moments if isinstance(event, JobClaimed) and gigabytes(needs[event.job_id]) <= size]
    own = [(time, event) for time, event in moments if event.worker == name.replace(" ", "-")]
    gaps = [
        later - earlier
        for (earlier, event), (later, _) in pairwise(own)
        if isinstance(event, JobCompleted) and later <= max(fits)
    ]
    return max(gaps, default=0.0)


def gigabytes(tier: str | None) -> int:
    """A tier's size."""
    return int((tier or "0gb").removesuffix("gb"))


async def main() -> None:
    """Measure on a broker of our own."""
    with find_broker() as broker, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), broker.url, f"bench-{os.getpid()}")
        try:
            await measure(fleet)
        finally:
            await fleet.stop()


if __name__ == "__main__":
    asyncio.run(main())
