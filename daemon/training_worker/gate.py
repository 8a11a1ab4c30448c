"""The gate: whether a worker takes jobs. Open, paused, or drained for good."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Gate:
    """Shared by a worker's slots."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self._opened.set()
        self.drained = False

    def pause(self) -> None:
        """Take nothing new until resumed."""
        if not self.drained:
            self._opened.clear()
            self._closed.set()

    def resume(self) -> None:
        """Take jobs again."""
        if not self.drained:
            self._closed.clear()
            self._opened.set()

    def drain(self) -> None:
        """Take nothing new ever again."""
        self.drained = True
        self._closed.set()
        self._opened.set()

    @property
    def closed(self) -> bool:
        """Whether nothing new may be taken now."""
        return self._closed.is_set()

    async def wait_open(self) -> bool:
        """Wait until jobs may be taken. False if that will never be."""
        await self._opened.wait()
        return not self.drained

    async def unless_closed(self, awaitable: Awaitable[T]) -> T | None:
        """Wait for something; None if the gate closes first."""
        work = asyncio.ensure_future(awaitable)
        closed = asyncio.create_task(self._closed.wait(), name="gate-closed")
        try:
            await asyncio.wait({work, closed}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            closed.cancel()
            work.cancel()
            # Let the cancelled work clean up after itself before anybody uses what it used.
            await asyncio.wait({work})
