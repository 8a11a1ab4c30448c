"""What a broker carries: workers that wait, workers that train, and jobs that are placed.

    python -m benchmarks.scale [--idle 100] [--busy 40] [--jobs 200] [--seconds 20]

Each part on a broker of its own, the workers many to a process, each with its own connection. A busy worker's trainer
writes a record a second. Placing begins with all jobs in one tier's queue, each of two seconds, and counts up to the
last claim; before that, the same jobs pass the intake.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from tests.support.fleet import Fleet

from benchmarks.park import TIMEOUT, Park, open_park
from benchmarks.report import print_row
from training_schemas.jobs import JOB_TYPE, MemoryTier, ModelFamily
from training_worker.broker.names import SUBMIT_KEY
from training_worker.broker.session import persistent
from training_worker.testing.local_broker import find_broker

SETTLE = 5.0

# As many publishes are on their way at once.
ABREAST = 50


async def measure_idle(count: int, seconds: float) -> None:
    """What workers that wait cost."""
    async with opened(0) as park:
        print_row("broker, nobody connected", f"resident {park.broker_mib:.0f} MiB")
    async with opened(count) as park:
        await asyncio.sleep(SETTLE)
        await report(park, seconds, f"{count} idle workers")


async def measure_busy(count: int, seconds: float) -> None:
    """What workers with a trainer cost."""
    async with opened(count) as park:
        await submit(park.fleet, count, steps=10_000)
        await park.until("trainer_started", count)
        await asyncio.sleep(SETTLE)
        before = await park.fleet.depth(park.fleet.names.events_log) or 0
        await report(park, seconds, f"{count} busy workers")
        events = (await park.fleet.depth(park.fleet.names.events_log) or 0) - before
        print_row("events published meanwhile", f"{events / seconds:.1f} a second")


async def measure_placing(count: int, jobs: int) -> None:
    """How fast waiting jobs find workers."""
    async with opened(count) as park:
        fleet = park.fleet
        await park.pause()
        before, began = park.cpu(), time.time()
        await submit(fleet, jobs, steps=2)
        await until_waiting(fleet, jobs)
        report_jobs("pass the intake", jobs, time.time() - began, (park.cpu() - before).per(jobs))
        before, began = park.cpu(), time.time()
        await fleet.api.resume("all")
        claims = await park.until("claimed", jobs)
        first = claims[min(count, jobs) - 1] - began
        print_row("every worker has its first job", f"{first:.1f} s")
        report_jobs("placed", jobs, claims[-1] - began, (park.cpu() - before).per(jobs))
        await park.until("job_ended", jobs)
        report_jobs("ended", jobs, time.time() - began, (park.cpu() - before).per(jobs))


def report_jobs(what: str, jobs: int, seconds: float, cpu: str) -> None:
    """Print a throughput, and what each job cost."""
    print_row(f"{jobs} jobs {what}", f"{seconds:.1f} s, {jobs / seconds:.1f} a second; CPU for each: {cpu}")


async def report(park: Park, seconds: float, what: str) -> None:
    """Print what all of it uses."""
    before = park.cpu()
    await asyncio.sleep(seconds)
    print_row(what, (park.cpu() - before).share(seconds))
    print_row(f"{what}, resident", f"broker {park.broker_mib:.0f} MiB, all workers {park.workers_mib:.0f} MiB")


async def submit(fleet: Fleet, count: int, steps: int) -> None:
    """Publish jobs, as a backend with one connection would."""
    turns = asyncio.Semaphore(ABREAST)
    async with fleet.session() as session:

        async def publish(number: int) -> None:
            job = fleet.job(f"job-{number}", gpu_memory_tier="24gb", max_train_steps=steps)
            async with turns:
                message = persistent(msgspec.json.encode(job), type=JOB_TYPE)
                await session.publish(fleet.names.jobs, SUBMIT_KEY, message)

        await asyncio.gather(*(publish(number) for number in range(count)))


async def until_waiting(fleet: Fleet, count: int) -> None:
    """Wait until all jobs wait in the tier's queue."""
    queue = fleet.names.tier_queue(ModelFamily.FLUX, MemoryTier.GB24)
    async with asyncio.timeout(TIMEOUT):
        while (await fleet.depth(queue) or 0) < count:  # noqa: ASYNC110 - a queue has no such event
            await asyncio.sleep(0.2)


@asynccontextmanager
async def opened(count: int) -> AsyncIterator[Park]:
    """Workers on a broker of their own."""
    with find_broker() as broker, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), broker.url, f"bench-{os.getpid()}")
        async with open_park(fleet, count) as park:
            yield park


async def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=100)
    parser.add_argument("--busy", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    await measure_idle(arguments.idle, arguments.seconds)
    await measure_busy(arguments.busy, arguments.seconds)
    await measure_placing(arguments.busy, arguments.jobs)


if __name__ == "__main__":
    asyncio.run(main())
