"""A stage for one fault: hosts with short leases, one job, and moments of its life to wait for."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.fault.life import TIMEOUT, Trace, read_traces
from tests.support.cluster import Cluster
from tests.support.fleet import Daemon, Fleet
from tests.support.proxy import Proxy
from tests.support.small_disk import mounted

from training_schemas.jobs import TrainingJob
from training_worker.runs.process_identity import ProcessIdentity
from training_worker.testing.local_broker import PrivateBroker

JOB = "portrait"
STEPS = 30
PHASES = ("starting", "cachingText", "loadingModel", "training", "sampling", "exporting")


Stage = PrivateBroker | Cluster


class Scene:
    """One round of one fault. What differs from round to round is drawn from ``rng``."""

    def __init__(self, fleet: Fleet, rng: random.Random, stage: Stage | None = None) -> None:
        self.fleet = fleet
        self.rng = rng
        self.stage = stage
        self._stack = contextlib.AsyncExitStack()
        (fleet.folder / "datasets" / "traces").mkdir(exist_ok=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.fleet.stop()
        await self._stack.aclose()

    async def proxy(self) -> Proxy:
        """A proxy in front of the broker, which outlives the daemons."""
        return await self._stack.enter_async_context(Proxy(self.fleet.url))

    def small_disk(self, size_bytes: int) -> Path:
        """A file system of so many bytes. Raises `PermissionError` where mounting is not allowed."""
        return self._stack.enter_context(mounted(self.fleet.folder / "small-disk", size_bytes))

    async def host(self, name: str, mode: str = "steady", **changes: Any) -> Daemon:
        """Start a daemon; one of the same name again finds what the last one left."""
        return await self.fleet.start(name, mode=mode, **({"lease": 2, "grace": 1} | changes))

    async def submit(self, **fields: Any) -> TrainingJob:
        """Submit the job."""
        return await self.fleet.submit(JOB, **({"max_train_steps": STEPS} | fields))

    async def until(self, seen: Callable[[Trace], bool]) -> Trace:
        """Wait until a trainer of the job has noted something."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                for trace in read_traces(self.fleet, JOB):
                    if seen(trace):
                        return trace
                await asyncio.sleep(0.01)

    async def until_step(self, number: int) -> Trace:
        """Wait until a trainer has begun this step."""
        return await self.until(lambda trace: trace.what == "step" and trace.step >= number)

    async def until_phase(self, phase: str) -> Trace:
        """Wait until a trainer is in this phase, a little way in."""
        trace = await self.until(lambda trace: trace.what == phase)
        await asyncio.sleep(self.rng.uniform(0, 0.2))
        return trace

    async def some_step(self, last: int = STEPS - 5) -> Trace:
        """Wait until somewhere in the training."""
        return await self.until_step(self.rng.randint(1, last))

    async def some_time(self, most: float = 0.5) -> None:
        """Let some time pass."""
        await asyncio.sleep(self.rng.uniform(0, most))

    def run_folders(self, host: str) -> list[Path]:
        """The run folders of a host."""
        return list((self.fleet.folder / f"state-{host}" / "runs").glob("[!.]*"))

    def trainer(self, host: str) -> ProcessIdentity:
        """The trainer that runs on a host."""
        (folder,) = self.run_folders(host)
        identity = ProcessIdentity.read(folder / "process")
        assert identity is not None
        return identity

    def kill_trainer(self, host: str) -> None:
        """Kill the trainer and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.trainer(host).pid, signal.SIGKILL)
