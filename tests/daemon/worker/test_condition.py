"""What a worker says of itself to systemd."""

import asyncio
from pathlib import Path

import pytest

from training_worker.gpu.devices import GpuDevice
from training_worker.settings import Settings
from training_worker.worker.worker import Worker


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """One that does not run; it has two cards and a model."""
    devices = [
        GpuDevice(uuid=f"GPU-{dead_letter}", name="GpuDevice", memory_mib=24_564, simulated=False, usd_per_hour=None)
        for dead_letter in "ab"
    ]
    models = {"black-forest-labs/FLUX.1-dev": tmp_path}
    return Worker(Settings(state_dir=tmp_path, models=models), devices, lambda _: None)


async def test_it_is_healthy_while_its_tasks_are_alive(worker: Worker) -> None:
    """Link and slots: one that has ended while nobody left is a worker that does not do its work."""
    alive = asyncio.create_task(asyncio.sleep(60))
    ended = asyncio.create_task(asyncio.sleep(0))
    await ended
    worker._tasks = [alive]
    assert worker._condition().healthy

    worker._tasks.append(ended)
    assert not worker._condition().healthy

    # Slots end one after the other when it leaves.
    worker.drain("asked")
    assert worker._condition().healthy
    alive.cancel()


async def test_it_says_what_it_does(worker: Worker) -> None:
    """The broker, the way out, and the jobs by card."""
    assert worker._condition().status == "not connected to the broker; no job on 2 GPU(s)"

    worker._slots["GPU-b"].job_id = "portrait"
    worker.drain("asked")

    assert worker._condition().status == "not connected to the broker, draining; training portrait on GPU-b"
