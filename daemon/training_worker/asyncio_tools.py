"""Waiting for the first of several things."""

import asyncio


async def first_of(*events: asyncio.Event, timeout: float | None = None) -> None:  # noqa: ASYNC109
    """Wait until one of the events is set, at most ``timeout`` seconds. The caller checks which one it was."""
    waits = [asyncio.create_task(event.wait(), name="first-of") for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
