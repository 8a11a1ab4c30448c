"""What tests of every cost may ask for."""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import aio_pika
import pytest

from training_worker.broker.names import Names
from training_worker.broker.topology import delete_topology
from training_worker.demo.broker import NoBrokerError, PrivateBroker, find_broker

BROKER_FIXTURES = {"broker_url", "private_broker"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a broker, so that ``-m "not broker"`` is fast."""
    for item in items:
        if isinstance(item, pytest.Function) and BROKER_FIXTURES & set(item.fixturenames):
            item.add_marker("broker")


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Say that a real part is missing: that skips on a developer's machine and fails where CI is set."""

    def missing(part: str) -> NoReturn:
        if os.environ.get("CI", "false") not in {"", "0", "false"}:
            pytest.fail(part)
        pytest.skip(part)

    return missing


@pytest.fixture(scope="session")
def broker_url(missing: Callable[[str], NoReturn]) -> Iterator[str]:
    """A broker for all tests: the one of TRAINING_AMQP_URL, else one of the session's own."""
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(find_broker())
        except NoBrokerError as error:
            missing(str(error))
        yield broker.url


@pytest.fixture
def private_broker(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[PrivateBroker]:
    """A node for one test, which may kill and restart it. Starting it takes seconds: prefer `broker_url`."""
    node = PrivateBroker(tmp_path / "broker")
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    with node:
        yield node


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix that no other test uses. On a broker that outlives the tests, what has it is deleted afterwards."""
    prefix = f"t{secrets.token_hex(4)}"
    yield prefix
    url = os.environ.get("TRAINING_AMQP_URL")
    if url and "broker_url" in request.fixturenames:
        asyncio.run(_delete(url, Names(prefix)))


async def _delete(url: str, names: Names) -> None:
    """Delete what a fleet declares. Its exclusive queues go with their owners; its leases expire."""
    async with await aio_pika.connect(url, timeout=10) as connection:
        await delete_topology(await connection.channel(), names)
