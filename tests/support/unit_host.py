"""The unit on a machine with real systemd, and a client of its queues."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tests.support.fleet import GPU_24, TYPES, Fleet, to_toml
from tests.support.nspawn import TRAINER, Machine

from training_schemas.events import JobCompleted, JobProgress

UNIT = "training-worker.service"
PROGRAM = "/opt/training-worker/bin/training-worker"
CONFIG = "/etc/training-worker/worker.toml"
TIMEOUT = 60.0
# Of a trainer that is to outlive what is done to its daemon: half a minute at 20 steps a second.
LONG = 600


class Host:
    """The unit on its machine, and a client of its queues."""

    def __init__(self, machine: Machine, fleet: Fleet) -> None:
        self.machine = machine
        self.fleet = fleet

    def configure(self, **changes: Any) -> None:
        """Write the settings of this test, and the broker's address as the credential."""
        settings = {
            "prefix": self.fleet.names.prefix,
            "dataset_roots": ["/datasets"],
            "output_roots": ["/models"],
            "gpus": [GPU_24, GPU_24],
            "only_gpus": ["0"],
            "models": {"black-forest-labs/FLUX.1-dev": "/weights/base"},
            "engines": {
                "diffusers": {"command": ["/usr/bin/python3", "-S", TRAINER, "steady"], "training_types": TYPES}
            },
            "lease": 10,
            "grace": 1,
            "retry_delays": [1],
            "stop_grace": 5,
        } | changes
        self.machine.write(CONFIG, "\n".join(f"{key} = {to_toml(value)}" for key, value in settings.items()))
        self.machine.write("/etc/training-worker/amqp-url", f"{self.fleet.url}\n", 0o600)

    def start(self, unit: str = UNIT) -> None:
        """Start it: systemctl returns once the daemon has sent READY=1."""
        self.machine.run("systemctl", "start", unit)

    def shown(self, name: str, unit: str = UNIT) -> str:
        """A property of the unit."""
        return self.machine.shown(unit, name)

    async def until(self, name: str, test: Callable[[str], object], unit: str = UNIT) -> str:
        """Wait until a property is as it should be."""
        deadline = time.monotonic() + TIMEOUT
        while not test(value := self.shown(name, unit)):
            assert time.monotonic() < deadline, f"{name} is {value}"
            await asyncio.sleep(0.5)
        return value

    def watch(self, *command: str) -> list[str]:
        """The unit's states in the seconds after a command, each for as long as it lasts: name=value, between tabs."""
        show = f"systemctl show --property=ActiveState,MainPID,StatusText {UNIT}"
        look = f'"$@"; for i in $(seq 400); do {show} | paste -s; done | uniq'
        return self.machine.run("sh", "-c", look, "sh", *command).splitlines()

    async def train(self, job_id: str, steps: int) -> int:
        """Have a job trained, and wait until it is; the trainer's process id."""
        await self.fleet.submit(
            job_id, dataset_path="/datasets/set", output_path=f"/models/{job_id}", max_train_steps=steps
        )
        await self.fleet.until(job_id, JobProgress, count=3)
        (trainer,) = self.machine.trainers()
        return trainer

    async def completed(self, job_id: str) -> JobCompleted:
        """How a job ended, which was trained."""
        last = (await self.fleet.events(job_id))[-1]
        assert isinstance(last, JobCompleted)
        return last
