"""A park of simulated hosts: processes of many workers each, for what one machine can hold of a large fleet."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from tests.support.fleet import GPU_24, ROOT, TYPES, Daemon, Fleet, to_toml
from yarl import URL

from benchmarks.processes import broker_pid, children_seconds, cpu_seconds, resident_mib
from training_schemas.jobs import MemoryTier, ModelFamily

# Of a machine that holds a whole fleet: the last worker waits for all the others.
TIMEOUT = 600.0
STOP_TIMEOUT = 90.0

EACH = 50
TRAINER = ["/bin/sh", str(Path(__file__).with_name("small_trainer.sh"))]

# The kernel counts inotify instances by user, and allows each 128 as a rule; a busy worker needs one. Where we may, we
# give each process a user of its own.
FIRST_USER = 70_000


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of processor time."""

    broker: float
    workers: float
    trainers: float

    def __sub__(self, before: "Cpu") -> "Cpu":
        ours, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(before)
        return Cpu(**{name: used - theirs[name] for name, used in ours.items()})

    def share(self, seconds: float) -> str:
        """In percent of a core."""
        return self._each("{:.1f}% of a core", seconds / 100)

    def per(self, count: int) -> str:
        """In milliseconds for each of so many."""
        return self._each("{:.1f} ms", count / 1e3)

    def _each(self, form: str, divisor: float) -> str:
        parts = msgspec.structs.asdict(self).items()
        return ", ".join(f"{name} {form.format(used / divisor)}" for name, used in parts)


class Park:
    """Workers that run, and the broker that they share."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._broker = broker_pid(URL(fleet.url).port)
        self._processes: list[Daemon] = []

    @property
    def broker_mib(self) -> float:
        """Resident memory of the broker; 0 if that is not ours."""
        return resident_mib(self._broker) if self._broker else 0.0

    @property
    def workers_mib(self) -> float:
        """Resident memory of all workers' processes."""
        return sum(resident_mib(process.process.pid) for process in self._processes)

    def cpu(self) -> Cpu:
        """Processor time used so far; a trainer's counts once it has ended."""
        pids = [process.process.pid for process in self._processes]
        return Cpu(
            broker=cpu_seconds(self._broker) if self._broker else 0.0,
            workers=sum(map(cpu_seconds, pids)),
            trainers=sum(map(children_seconds, pids)),
        )

    def moments(self, event: str) -> list[float]:
        """When the workers logged this (unix seconds), in the order of time."""
        entries = [entry for process in self._processes for entry in process.logged(event)]
        return sorted(datetime.fromisoformat(entry["timestamp"]).timestamp() for entry in entries)

    async def until(self, event: str, count: int) -> list[float]:
        """Wait until they have logged this so often."""
        async with asyncio.timeout(TIMEOUT):
            while len(moments := self.moments(event)) < count:
                for process in self._processes:
                    assert process.process.poll() is None, process.log.read_text()[-5000:]  # noqa: S101 - as tests do
                await asyncio.sleep(0.5)
        return moments

    async def fill(self, count: int) -> None:
        """Start so many workers, one process of them after the other."""
        for first in range(0, count, EACH):
            numbers = range(first, min(first + EACH, count))
            self._processes.append(self._start(numbers))
            while await self.waiting() <= numbers[-1]:  # noqa: ASYNC110 - a queue has no such event
                await asyncio.sleep(0.2)

    async def waiting(self) -> int:
        """How many workers wait for jobs now."""
        names = self.fleet.names
        async with self.fleet.channel() as channel:
            queue = await channel.declare_queue(names.tier_queue(ModelFamily.FLUX, MemoryTier.GB24), passive=True)
            return queue.declaration_result.consumer_count or 0

    async def pause(self) -> None:
        """Have no worker take jobs."""
        while await self.waiting():
            await self.fleet.api.pause("all")
            await asyncio.sleep(0.5)

    def _start(self, numbers: range) -> Daemon:
        number = len(self._processes)
        folder = self.fleet.folder / f"park-{number}"
        folder.mkdir()
        files = [self._lay_out(folder, f"host-{number}") for number in numbers]
        user = FIRST_USER + number if os.geteuid() == 0 else os.geteuid()
        os.chown(folder, user, -1)
        log = folder / "log"
        path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
        env = os.environ | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(self.fleet.folder / "no-nvml")}
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "benchmarks.hosts", str(user), *files],
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return Daemon(process, log, f"park-{number}")

    def _lay_out(self, folder: Path, worker_id: str) -> str:
        engines = {"diffusers": {"command": TRAINER, "training_types": TYPES}}
        changes: dict[str, Any] = {"engines": engines, "state_dir": str(folder / worker_id), "lease": 120, "grace": 30}
        settings = self.fleet.settings(worker_id, [GPU_24], "", **changes)
        file = folder / f"{worker_id}.toml"
        file.write_text("\n".join(f"{key} = {to_toml(value)}" for key, value in settings.items()))
        return str(file)

    async def empty(self) -> None:
        """Stop all workers."""
        for process in self._processes:
            if process.process.stdin:
                process.process.stdin.close()
        for process in self._processes:
            try:
                await asyncio.to_thread(process.process.wait, STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()


@asynccontextmanager
async def open_park(fleet: Fleet, count: int) -> AsyncIterator[Park]:
    """A park of so many workers; they are stopped afterwards."""
    # Workers may run as other users.
    fleet.folder.chmod(0o755)
    (fleet.folder / "models").chmod(0o777)
    park = Park(fleet)
    # Declares the topology: workers that do it for the first time at the same moment get in each other's way.
    async with fleet.session():
        pass
    try:
        async with asyncio.timeout(TIMEOUT):
            await park.fill(count)
        yield park
    finally:
        await park.empty()
