from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from tests.support.fleet import Fleet
from tests.support.proxy import Proxy


@pytest_asyncio.fixture
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the broker. Ask for it before the fleet, so that it outlives the daemons."""
    async with Proxy(broker_url) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, broker_url: str, prefix: str) -> AsyncIterator[Fleet]:
    """Daemons to start, each test's on queues of its own; those that still run are stopped."""
    fleet = Fleet(tmp_path, broker_url, prefix)
    yield fleet
    await fleet.stop()
