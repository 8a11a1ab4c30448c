"""How long a job is alone: after a daemon's crash, at SIGHUP, after its host's death.

    python -m benchmarks.recovery [--rounds 10]

After a crash, from the start of the next daemon's process, the trainer running on. After a host's death, from the kill
of daemon and trainer; in a loss of power, the broker is not notified. What a lease and a grace add is a matter of
settings: they are short here, and the row shows how long.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.fleet import ROOT, Daemon, Fleet
from tests.support.proxy import Proxy

from benchmarks.report import print_row, spread
from training_schemas.events import JobCancelled
from training_worker.testing.local_broker import find_broker

# A step every 0.1 s, for as long as anybody measures.
ENDLESS = 10_000
GRACE = 1
HEARTBEAT = 2


async def measure(fleet: Fleet, rounds: int) -> None:
    """Run all measurements and print them."""
    await report_restarts(fleet, rounds)
    await report_deaths(fleet, rounds, lease=2)
    await report_power_loss(fleet, lease=2)
    await report_power_loss(fleet, lease=20)


def run_python(code: str) -> float:
    """Seconds that a Python process takes."""
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True)  # noqa: S603 - above
    return time.perf_counter() - began


async def report_restarts(fleet: Fleet, rounds: int) -> None:
    """Kill the daemon again and again, then have it replace itself, while one trainer trains."""
    daemon = await fleet.start("restarts", mode="slow", lease=120)
    await fleet.submit("restarts", max_train_steps=ENDLESS)
    await daemon.until_logged("trainer_started")
    empty, imported, found, rejoined, replaced = [], [], [], [], []
    for _ in range(rounds):
        daemon.kill()
        # In the same minute: what starting Python takes drifts with the machine's load.
        empty.append(await asyncio.to_thread(run_python, "pass"))
        imported.append(await asyncio.to_thread(run_python, "import training_worker.worker.worker"))
        began = time.time()
        daemon = await fleet.start("restarts", mode="slow", lease=120, online=False)
        rejoined.append(await seconds_until(daemon, "rejoined", began))
        found.append(await seconds_until(daemon, "trainer_found", began))
    for number in range(rounds):
        began = time.time()
        daemon.signal(signal.SIGHUP)
        replaced.append(await seconds_until(daemon, "rejoined", began, number + 2))
    print_row("python", spread(empty))
    print_row("python, daemon imported", spread(imported))
    print_row("crash: trainer found", spread(found))
    print_row("crash: job rejoined", spread(rejoined))
    print_row("SIGHUP: job rejoined", spread(replaced))
    await end(fleet, "restarts", daemon)


async def report_deaths(fleet: Fleet, rounds: int, lease: float) -> None:
    """Kill host after host, each with a job of its own, and see the next one take it."""
    claimed, started = [], []
    host = await start_host(fleet, "host-0", lease)
    for number in range(rounds):
        job = f"death-{number}"
        await submit_to(fleet, host, job)
        heir = await start_host(fleet, f"host-{number + 1}", lease)
        # The last renewal is as long ago as it happens to be.
        await asyncio.sleep(lease / 2 * number / rounds)
        began = kill_host(host)
        claimed.append(await seconds_until(heir, "claimed", began))
        started.append(await seconds_until(heir, "trainer_started", began))
        await cancel(fleet, job)
        host = heir
    host.kill()
    print_row(f"death, lease {lease}, grace {GRACE}: claimed", spread(claimed))
    print_row(f"death, lease {lease}, grace {GRACE}: trainer", spread(started))


async def report_power_loss(fleet: Fleet, lease: float) -> None:
    """The same once, with no process left that closes the broker's connection."""
    job = f"power-{lease}"
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(fleet.url))
        url = f"{proxy.url}?heartbeat={HEARTBEAT}"
        host = await start_host(fleet, f"{job}-0", lease, amqp_url=url)
        await submit_to(fleet, host, job)
        heir = await start_host(fleet, f"{job}-1", lease)
        proxy.drop()
        began = kill_host(host)
        seconds = await seconds_until(heir, "claimed", began)
        print_row(f"power loss, heartbeat {HEARTBEAT}, lease {lease}: claimed", f"{seconds:.2f} s")
        await end(fleet, job, heir)


async def start_host(fleet: Fleet, name: str, lease: float, **changes: Any) -> Daemon:
    """A daemon whose trainer trains for long."""
    return await fleet.start(name, mode="slow", lease=lease, grace=GRACE, **changes)


async def submit_to(fleet: Fleet, host: Daemon, job: str) -> None:
    """Have the only host train a job."""
    before = len(host.trainers)
    await fleet.submit(job, max_train_steps=ENDLESS)
    await host.until_logged("trainer_started", before + 1)


def kill_host(host: Daemon) -> float:
    """End a daemon and its trainer at once, and return when (unix seconds)."""
    began = time.time()
    host.process.kill()
    os.killpg(host.trainers[-1], signal.SIGKILL)
    host.kill()
    return began


async def seconds_until(daemon: Daemon, event: str, began: float, count: int = 1) -> float:
    """From ``began`` (unix seconds) to the log's last entry of this key, once there are so many."""
    entries = await daemon.until_logged(event, count)
    return datetime.fromisoformat(entries[-1]["timestamp"]).timestamp() - began


async def cancel(fleet: Fleet, job: str) -> None:
    """End a job."""
    await fleet.api.cancel(job)
    await fleet.until(job, JobCancelled)


async def end(fleet: Fleet, job: str, daemon: Daemon) -> None:
    """End a job and its daemon: the next measurement has a fleet of its own."""
    await cancel(fleet, job)
    daemon.kill()


async def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    with find_broker() as broker, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), broker.url, f"bench-{os.getpid()}")
        try:
            await measure(fleet, arguments.rounds)
        finally:
            await fleet.stop()


if __name__ == "__main__":
    asyncio.run(main())
