"""What tests of every cost may use."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio
from tests.support.cluster import Cluster
from tests.support.consumer_timeout import consumer_timeout_node
from tests.support.fleet import Fleet, delete_fleet
from tests.support.nvml import Host, NoCompilerError, build_nvml
from tests.support.proxy import Proxy
from tests.support.real_training import make_materials
from tests.support.small_disk import mounted

from training_worker.broker.names import Names
from training_worker.testing.local_broker import NoBrokerError, PrivateBroker, find_broker

INVOKE = "INVOKE_TRAINING_PYTHON"
BROKER_FIXTURES = {"broker_url", "private_broker", "consumer_timeout_broker", "cluster"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a broker, so that ``-m "not broker"`` is fast; skip what is long or needs invoke-training."""
    systemd = "systemd" in config.getoption("-m")
    for item in items:
        if isinstance(item, pytest.Function) and BROKER_FIXTURES & set(item.fixturenames):
            item.add_marker("broker")
        if item.get_closest_marker("invoke") and not os.environ.get(INVOKE):
            item.add_marker(pytest.mark.skip(f"{INVOKE} names no interpreter that has invoke-training"))
        if item.get_closest_marker("systemd") and not systemd:
            item.add_marker(pytest.mark.skip("takes minutes and root: make test-systemd"))


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Report that a real part is missing: that skips on a developer's machine and fails where CI is set."""

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
    with _installed(PrivateBroker(tmp_path / "broker"), missing) as node:
        yield node


@pytest.fixture
def consumer_timeout_broker(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[PrivateBroker]:
    """A node for one test whose consumer timeout is `CONSUMER_TIMEOUT` instead of half an hour."""
    with _installed(consumer_timeout_node(tmp_path / "broker"), missing) as node:
        yield node


@pytest.fixture
def cluster(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[Cluster]:
    """Three nodes for one test, which may kill and start them. Starting takes half a minute where CPUs are few."""
    cluster = Cluster(tmp_path / "cluster")
    _installed(cluster.nodes[0], missing)
    with cluster:
        yield cluster


def _installed(node: PrivateBroker, missing: Callable[[str], NoReturn]) -> PrivateBroker:
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    return node


@pytest.fixture
def small_disk(missing: Callable[[str], NoReturn]) -> Iterator[Callable[[Path, int], Path]]:
    """Mounts an empty file system of so many bytes at a path, as often as it is called, until the test ends."""
    with ExitStack() as stack:

        def small_disk(path: Path, size_bytes: int) -> Path:
            try:
                return stack.enter_context(mounted(path, size_bytes))
            except PermissionError as error:
                missing(str(error))

        yield small_disk


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix that no other test uses. What has it is deleted afterwards: a broker with many queues is slow."""
    prefix = f"t{secrets.token_hex(4)}"
    # Requested here, so that it outlives what is deleted.
    url = request.getfixturevalue("broker_url") if "broker_url" in request.fixturenames else None
    yield prefix
    if url is not None:
        asyncio.run(delete_fleet(url, Names(prefix)))


@pytest_asyncio.fixture
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the broker. Request it before the fleet, so that it outlives the daemons."""
    async with Proxy(broker_url) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, broker_url: str, prefix: str) -> AsyncIterator[Fleet]:
    """Daemons to start, each test's on queues of its own; those that still run are stopped."""
    fleet = Fleet(tmp_path, broker_url, prefix)
    yield fleet
    await fleet.stop()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Path:
    """Our libnvidia-ml.so.1, compiled once."""
    try:
        return build_nvml(tmp_path_factory.mktemp("nvml"))
    except NoCompilerError as error:
        missing(str(error))


@pytest.fixture
def host(nvml_library: Path, tmp_path: Path) -> Host:
    """A host with a driver; it has no GPU until a test describes one."""
    return Host(nvml_library.parent, tmp_path / "nvml.txt")


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline and a drawn data set."""
    return make_materials(tmp_path_factory.mktemp("materials"))
