"""How long a job waits for an idle worker, and what an idle worker costs.

    python -m benchmarks.pickup [--jobs 100] [--idle 30]

Two figures of the same broker in the same run stand beside them, since absolute times drift on shared machines: what it
takes to declare a quorum queue, which every claim does once, and to publish to one and get the message.

Pick-up is the time from a backend's publish, on a connection that is open, to the return of the call that starts the
trainer's process. The trainer does nothing. One job at a time, each once the worker is idle again.
"""

import argparse
import asyncio
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path

import msgspec
from tests.support.fleet import Daemon, Fleet

from benchmarks.processes import cpu_seconds, resident_mib
from benchmarks.report import percentiles, print_row
from training_schemas.jobs import JOB_TYPE
from training_worker.broker.names import SUBMIT_KEY
from training_worker.broker.session import Session, persistent
from training_worker.testing.local_broker import find_broker

WARM_UP = 5


async def measure(fleet: Fleet, jobs: int, idle: float) -> None:
    """Run both measurements on one daemon and print them."""
    daemon = await fleet.start()
    await asyncio.sleep(2)
    await report_idle(daemon, idle, "idle, before its first job")
    await report_reference(fleet)
    async with fleet.session() as session:
        seconds = [await pick_up(fleet, daemon, session, number) for number in range(jobs + WARM_UP)]
    print_row(f"pick-up of {jobs} jobs", percentiles(seconds[WARM_UP:]))
    await report_idle(daemon, idle, f"idle, after {jobs + WARM_UP} jobs")


async def pick_up(fleet: Fleet, daemon: Daemon, session: Session, number: int) -> float:
    """Seconds from publish to process start of one job."""
    job = fleet.job(f"job-{number}")
    message = persistent(msgspec.json.encode(job), type=JOB_TYPE)
    began = time.time()
    await session.publish(fleet.names.jobs, SUBMIT_KEY, message)
    await daemon.until_logged("job_ended", number + 1)
    # Until the worker consumes its queues again.
    await asyncio.sleep(0.1)
    started = datetime.fromisoformat(daemon.logged("trainer_started")[number]["timestamp"])
    return started.timestamp() - began


async def report_reference(fleet: Fleet, rounds: int = 30) -> None:
    """Print what the broker alone takes."""
    declared, passed = [], []
    async with fleet.channel() as channel:
        for number in range(rounds):
            name = f"{fleet.names.prefix}.reference.{number}"
            began = time.perf_counter()
            queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
            declared.append(time.perf_counter() - began)
            began = time.perf_counter()
            await channel.default_exchange.publish(persistent(b"{}"), name)
            await queue.get(no_ack=True)
            passed.append(time.perf_counter() - began)
            await channel.queue_delete(name)
    print_row("broker: declare a quorum queue", percentiles(declared))
    print_row("broker: publish and get", percentiles(passed))


async def report_idle(daemon: Daemon, seconds: float, what: str) -> None:
    """Print resident memory and CPU of a daemon that waits."""
    before = cpu_seconds(daemon.process.pid)
    await asyncio.sleep(seconds)
    used = cpu_seconds(daemon.process.pid) - before
    resident = resident_mib(daemon.process.pid)
    print_row(what, f"resident {resident:.1f} MiB, CPU {100 * used / seconds:.2f}% of a core")


async def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--idle", type=float, default=30)
    arguments = parser.parse_args()
    with find_broker() as broker, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), broker.url, f"bench-{os.getpid()}")
        try:
            await measure(fleet, arguments.jobs, arguments.idle)
        finally:
            await fleet.stop()


if __name__ == "__main__":
    asyncio.run(main())
