"""The gate before a slot's first job: it opens when the kernels of the slot's GPUs are known."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.monitor import Monitor
from training_worker.selftest.gpu_tests import GpuTests
from training_worker.worker.heartbeat import Heartbeat

# After so many seconds a GPU is tested again on which nothing was right: what held its memory may be gone.
RETRY_DELAY = 600.0


class KernelGate:
    """Has GPUs tested, and quarantines those on which no kernel is right."""

    def __init__(self, tests: GpuTests, monitor: Monitor, heartbeat: Heartbeat) -> None:
        self._tests = tests
        self._monitor = monitor
        self._heartbeat = heartbeat
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """End what is being tested: the worker consumes nothing any more."""
        self._leaving.set()

    async def passed(self, device: GpuDevice, before: Coroutine[Any, Any, None]) -> bool:
        """Wait until a slot may take jobs; False if the worker leaves first.

        ``before`` re-attaches the slot's trainers: they are neither kept waiting for what is remembered, nor disturbed
        by a test.
        """
        # What does not hold any more is forgotten at once: a run that goes on may be prepared again.
        recall = asyncio.create_task(self._tests.recall(device), name=f"recall-{device.uuid}")
        try:
            await before
            known = await self._unless_leaving(recall) and recall.result()
        finally:
            recall.cancel()
        if not known:
            return await self._tested(device)
        await self._heartbeat.tested()
        return True

    async def _tested(self, device: GpuDevice) -> bool:
        """Test a slot's GPUs, again and again while they are unfit for jobs."""
        while True:
            test = asyncio.create_task(self._tests.ensure(device), name=f"self-test-{device.uuid}")
            if not await self._unless_leaving(test):
                return False
            unfit = test.result()
            if unfit is None:
                self._monitor.absolve(device.uuid)
                await self._heartbeat.tested()
                return True
            self._monitor.condemn(device.uuid, unfit)
            if not await self._unless_leaving(asyncio.create_task(asyncio.sleep(RETRY_DELAY), name="retry-delay")):
                return False

    async def _unless_leaving(self, task: asyncio.Task[Any]) -> bool:
        """Wait for a task; False if the worker leaves first, and the task is cancelled."""
        leaving = asyncio.create_task(self._leaving.wait(), name="leaving")
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return task.done()
        finally:
            leaving.cancel()
            task.cancel()
            # What it started is ended before anything else begins.
            await asyncio.wait({task})
