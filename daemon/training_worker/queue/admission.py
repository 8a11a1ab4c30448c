"""The admission: whether a worker consumes jobs. It is open, paused, or drained for good."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Admission:
    """Shared by a worker's slots: each has an inner one of its own, which can also be barred."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self._opened.set()
        self._paused = False
        self._barred = False
        self._inner: list[Admission] = []
        self.drained = False

    def inner(self) -> "Admission":
        """Return a new admission that follows this one from now on, and can be barred alone."""
        admission = Admission()
        self._inner.append(admission)
        return admission

    def pause(self) -> None:
        """Admit nothing new until resumed."""
        self._paused = True
        self._move()
        for admission in self._inner:
            admission.pause()

    def resume(self) -> None:
        """Admit jobs again."""
        self._paused = False
        self._move()
        for admission in self._inner:
            admission.resume()

    def bar(self) -> None:
        """Admit nothing new until unbarred, whether paused or not."""
        self._barred = True
        self._move()

    def unbar(self) -> None:
        """Admit jobs again, unless paused."""
        self._barred = False
        self._move()

    def drain(self) -> None:
        """Admit nothing new ever again."""
        self.drained = True
        self._move()
        for admission in self._inner:
            admission.drain()

    def _move(self) -> None:
        shut = self.drained or self._paused or self._barred
        _put(self._closed, up=shut)
        # Whoever waits for a drained admission is woken, and learns that.
        _put(self._opened, up=self.drained or not shut)

    @property
    def closed(self) -> bool:
        """Whether nothing new may be consumed now."""
        return self._closed.is_set()

    async def wait_open(self) -> bool:
        """Wait until jobs may be consumed. False if that will never be."""
        await self._opened.wait()
        return not self.drained

    async def unless_closed(self, awaitable: Awaitable[T]) -> T | None:
        """Wait for something; None if the admission closes first."""
        work = asyncio.ensure_future(awaitable)
        closed = asyncio.create_task(self._closed.wait(), name="admission-closed")
        try:
            await asyncio.wait({work, closed}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            closed.cancel()
            work.cancel()
            # Let the cancelled work clean up after itself before anybody uses what it used.
            await asyncio.wait({work})


def _put(event: asyncio.Event, *, up: bool) -> None:
    event.set() if up else event.clear()
