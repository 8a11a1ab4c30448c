"""What a daemon costs the host whose GPU it serves, while a trainer writes ten records a second.

    python -m benchmarks.load [--seconds 30]

User and system time of the daemon's process alone, beside that of the same daemon while it waits.
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from tests.support.fleet import Daemon, Fleet

from benchmarks.processes import cpu_seconds, resident_mib
from benchmarks.report import print_row
from training_worker.testing.local_broker import find_broker

RECORDS = 10
"""Records a second of a trainer in mode ``slow``."""

SETTLE = 3.0


async def measure(fleet: Fleet, seconds: float) -> None:
    """Let one daemon wait, then watch a trainer."""
    daemon = await fleet.start(mode="slow", lease=120)
    await asyncio.sleep(SETTLE)
    await report(daemon, seconds, "idle")
    await fleet.submit("load", max_train_steps=int(10 * RECORDS * (seconds + SETTLE)))
    await daemon.until_logged("trainer_started")
    await asyncio.sleep(SETTLE)
    before = await fleet.depth(fleet.names.events_log) or 0
    await report(daemon, seconds, "with a trainer")
    events = (await fleet.depth(fleet.names.events_log) or 0) - before
    print_row("events published meanwhile", f"{events / seconds:.1f} a second")


async def report(daemon: Daemon, seconds: float, what: str) -> None:
    """Print CPU and resident memory of a daemon."""
    before = cpu_seconds(daemon.process.pid)
    await asyncio.sleep(seconds)
    used = cpu_seconds(daemon.process.pid) - before
    resident = resident_mib(daemon.process.pid)
    print_row(what, f"CPU {100 * used / seconds:.2f}% of a core, resident {resident:.1f} MiB")


async def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    with find_broker() as broker, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), broker.url, f"bench-{os.getpid()}")
        try:
            await measure(fleet, arguments.seconds)
        finally:
            await fleet.stop()


if __name__ == "__main__":
    asyncio.run(main())
