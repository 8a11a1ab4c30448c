"""A slot and the self-test of its GPUs: nothing is taken before it is there."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.owning import TIMEOUT

from training_worker.gpu.devices import GpuDevice
from training_worker.observations import unobserved
from training_worker.selftest.gpu_tests import GpuTests
from training_worker.settings import Settings
from training_worker.worker import kernel_gate
from training_worker.worker.worker import Worker

GPU = GpuDevice(uuid="GPU-a", name="A", memory_mib=24_564, simulated=False, usd_per_hour=None)


class ToldTests(GpuTests):
    """Finds one reason after the other, then none; waits for a word before each."""

    def __init__(self, settings: Settings, *reasons: str, known: bool = False) -> None:
        super().__init__(settings, unobserved)
        self._reasons = list(reasons)
        self._is_known = known
        self.may_end = asyncio.Event()
        self.cancelled = False

    async def recall(self, device: GpuDevice) -> bool:  # noqa: ARG002
        """As told."""
        return self._is_known

    async def ensure(self, device: GpuDevice) -> str | None:  # noqa: ARG002
        """The next reason."""
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self._reasons.pop(0) if self._reasons else None


class Scene:
    """A worker with one GPU, whose slot only says that it takes jobs."""

    def __init__(self, folder: Path, *reasons: str, known: bool = False) -> None:
        settings = Settings(state_dir=folder, models={"black-forest-labs/FLUX.1-dev": folder})
        self.tests = ToldTests(settings, *reasons, known=known)
        self.worker = Worker(settings, [GPU], unobserved, tests=self.tests)
        self.takes = asyncio.Event()
        self.told: list[tuple[str, bool]] = []
        self.worker._monitor._announce = self.tell
        self.worker._slots[GPU.uuid].run = self.take  # type: ignore[method-assign, assignment]

    def tell(self, gpu: str, reason: str, *, recovered: bool) -> None:  # noqa: ARG002
        """Keep it."""
        self.told.append((reason, recovered))

    async def take(self, *_: Any) -> None:
        """In place of taking jobs."""
        self.takes.set()

    async def run(self) -> None:
        """Run the slot, for a bounded time."""
        async with asyncio.timeout(TIMEOUT):
            await self.worker._run_slot(GPU.uuid)


async def test_a_slot_takes_jobs_when_its_gpu_has_been_tested(tmp_path: Path) -> None:
    """Not before."""
    scene = Scene(tmp_path)
    running = asyncio.create_task(scene.run())
    await asyncio.sleep(0.05)
    assert not scene.takes.is_set()

    scene.tests.may_end.set()
    await running

    assert scene.takes.is_set()
    assert scene.told == []


async def test_a_slot_whose_gpus_are_known_takes_jobs_at_once(tmp_path: Path) -> None:
    """Without another test."""
    scene = Scene(tmp_path, "not asked", known=True)

    await scene.run()

    assert scene.takes.is_set()


async def test_a_gpu_without_a_right_kernel_is_quarantined_until_a_test_finds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason is what the test found."""
    monkeypatch.setattr(kernel_gate, "RETRY_DELAY", 0.01)
    scene = Scene(tmp_path, "no kernel is right", "no kernel is right")
    scene.tests.may_end.set()

    await scene.run()

    assert scene.takes.is_set()
    assert scene.told == [("no kernel is right", False), ("no kernel is right", True)]


async def test_a_worker_that_leaves_does_not_wait_for_a_test(tmp_path: Path) -> None:
    """Its program is ended."""
    scene = Scene(tmp_path)
    running = asyncio.create_task(scene.run())
    await asyncio.sleep(0.05)

    scene.worker.drain("asked")
    await running

    assert scene.tests.cancelled
    assert not scene.takes.is_set()


async def test_a_gpu_in_quarantine_for_its_kernels_stays_there_while_the_driver_says_that_it_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats show why."""
    monkeypatch.setattr(kernel_gate, "RETRY_DELAY", 60)
    scene = Scene(tmp_path, "no kernel is right")
    scene.tests.may_end.set()
    running = asyncio.create_task(scene.run())
    await asyncio.sleep(0.05)

    monitor = scene.worker._monitor
    assert monitor.quarantined(GPU.uuid) == "no kernel is right"
    assert scene.worker._admissions[GPU.uuid].closed
    monitor.absolve(GPU.uuid)
    assert monitor.quarantined(GPU.uuid) is None
    # It has not been read by now, and so its slot stays shut.
    assert scene.worker._admissions[GPU.uuid].closed
    scene.worker.drain("asked")
    await running
