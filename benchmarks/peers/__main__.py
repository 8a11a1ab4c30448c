"""Our daemon beside other workers on the same broker, all idle at once, their jobs taken in turns.

    python -m benchmarks.peers [--jobs 100]

The peers run in an environment of their own, which `make bench` sets up. Each acknowledges after the work and holds one
message. Pick-up is the time from the call of the peer's own client, connected before, to the first line of the task; a
second series counts to the return of the call by which the task starts a child process. Ours is counted as in
`benchmarks.pickup`: it always starts a child, and declares a lease, takes a lock and writes to the ledger before.
"""

import argparse
import asyncio
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from tests.support.fleet import Daemon, Fleet

from benchmarks.peers.memory import session_memory
from benchmarks.peers.peer import KINDS, PYTHON, Peer, start_peer
from benchmarks.pickup import WARM_UP, pick_up, report_reference
from benchmarks.report import percentiles, print_row
from training_worker.broker.session import Session
from training_worker.broker.topology import delete_topology
from training_worker.testing.local_broker import find_broker

OURS = "training-worker"
FLOOR = KINDS[0].name
BLOCK = 10
PAUSE = 0.1
SETTLE = 5.0

Series = dict[tuple[str, bool], Callable[[], Awaitable[float]]]


async def measure(fleet: Fleet, jobs: int) -> None:
    """Start everybody, take the jobs in turns, and print what it took."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(clean_up, fleet)
        peers = {
            kind.name: await stack.enter_async_context(
                start_peer(kind, fleet.url, f"{fleet.names.prefix}.peer-{number}", fleet.folder / f"peer-{number}")
            )
            for number, kind in enumerate(KINDS)
        }
        daemon = await fleet.start()
        session = await stack.enter_async_context(fleet.session())
        await report_reference(fleet)
        report_spawn()
        report_pick_up(await run(all_series(peers, fleet, daemon, session), jobs))
        await asyncio.sleep(SETTLE)
        for name, peer in peers.items():
            print_row(f"{name}: idle", str(peer.memory()))
        print_row(f"{OURS}: idle", str(session_memory(daemon.process.pid)))


def all_series(peers: dict[str, Peer], fleet: Fleet, daemon: Daemon, session: Session) -> Series:
    """What is done for one job, by who does it and whether it starts a child."""
    numbers = itertools.count()
    series: Series = {
        (name, child): partial(peer.pick_up, child=child) for name, peer in peers.items() for child in (False, True)
    }
    return series | {(OURS, True): lambda: pick_up(fleet, daemon, session, next(numbers))}


async def run(series: Series, jobs: int) -> dict[tuple[str, bool], list[float]]:
    """Seconds of each job of each series, a block of each in turn: the machine's drift meets all alike."""
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in series}
    for job in series.values():
        await block(job, WARM_UP)
    while any(len(taken) < jobs for taken in seconds.values()):
        for key, job in series.items():
            seconds[key] += await block(job, min(BLOCK, jobs - len(seconds[key])))
    return seconds


async def block(job: Callable[[], Awaitable[float]], count: int) -> list[float]:
    """Jobs one at a time, each once the worker is idle again."""
    seconds = []
    for _ in range(count):
        seconds.append(await job())
        await asyncio.sleep(PAUSE)
    return seconds


def report_pick_up(seconds: dict[tuple[str, bool], list[float]]) -> None:
    """Print both kinds of series, each with its median over that of the floor, a plain consumer."""
    for child in (False, True):
        floor = statistics.median(seconds[FLOOR, child])
        for (name, starts_child), taken in seconds.items():
            if starts_child == child:
                ratio = statistics.median(taken) / floor
                what = "child" if child else "task"
                print_row(f"{name}: {what}", f"{percentiles(taken)}, {ratio:.1f} x floor")


def report_spawn(rounds: int = 30) -> None:
    """Print what starting a child that does nothing takes."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        with subprocess.Popen([sys.executable, "-S", "-c", "pass"], start_new_session=True):
            seconds.append(time.perf_counter() - began)
    print_row("start a child that does nothing", percentiles(seconds))


async def clean_up(fleet: Fleet) -> None:
    """Stop the daemon and delete what it declared."""
    await fleet.stop()
    async with fleet.channel() as channel:
        await delete_topology(channel, fleet.names)


async def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    arguments = parser.parse_args()
    if not PYTHON.exists():
        parser.error("the peers are not installed: scripts/setup peers does that")
    with find_broker() as broker, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), broker.url, f"bench-{os.getpid()}")
        await measure(fleet, arguments.jobs)


if __name__ == "__main__":
    # As an interrupt does: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asyncio.run(main())
