"""AMQP over TLS: a broker that requires certificates, and daemons that have the right ones or not."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
import pytest_asyncio
from tests.support.authority import Authority
from tests.support.fleet import Daemon, Fleet

from training_schemas.events import JobCompleted
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.testing.local_broker import PrivateBroker, free_port

pytestmark = pytest.mark.broker

CONFIG = """
listeners.ssl.local = 127.0.0.1:{port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A broker behind TLS, who signs for it, and who does not."""

    node: PrivateBroker
    url: str
    authority: Authority
    stranger: Authority


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[Scene]:
    if shutil.which("openssl") is None:
        missing("no openssl is installed")
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "ours", "fleet CA")
    certificate, key = authority.sign("broker")
    port = free_port()
    config = CONFIG.format(port=port, ca=authority.certificate, certificate=certificate, key=key)
    node = PrivateBroker(folder / "node", config=config)
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    with node:
        url = f"amqps://guest:guest@127.0.0.1:{port}/"
        yield Scene(node=node, url=url, authority=authority, stranger=Authority(folder / "theirs", "another CA"))


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, scene: Scene) -> AsyncIterator[Fleet]:
    """The tests' own look goes past TLS: it is the daemon's connection that is tried."""
    fleet = Fleet(tmp_path, scene.node.url, "tls")
    yield fleet
    await fleet.stop()


async def start(fleet: Fleet, scene: Scene, ca: Path, pair: tuple[Path, Path] | None, *, online: bool) -> Daemon:
    files: dict[str, Any] = {"amqp_ca_file": str(ca)}
    if pair is not None:
        files |= {"amqp_cert_file": str(pair[0]), "amqp_key_file": str(pair[1])}
    return await fleet.start(online=online, amqp_url=scene.url, **files)


async def refused(daemon: Daemon) -> str:
    """Why a daemon does not connect, by what it logs of it twice."""
    entries = await daemon.until_logged("broker_unreachable", 2)
    assert daemon.logged("broker_connected") == []
    assert daemon.process.poll() is None
    return str(entries[-1]["error"])


async def test_a_daemon_with_a_certificate_runs_a_job(fleet: Fleet, scene: Scene) -> None:
    """Each side believes the other by the fleet's own authority."""
    await start(fleet, scene, scene.authority.certificate, scene.authority.sign("worker"), online=True)

    await fleet.submit("secret")

    assert isinstance((await fleet.events("secret"))[-1], JobCompleted)


async def test_a_client_names_its_files_in_the_address(fleet: Fleet, scene: Scene) -> None:
    """As the AMQP library reads them."""
    await start(fleet, scene, scene.authority.certificate, scene.authority.sign("worker2"), online=True)
    certificate, key = scene.authority.sign("backend")
    query = f"?cafile={scene.authority.certificate}&certfile={certificate}&keyfile={key}"
    api = AsyncTrainingWorkerAPI(scene.url + query, prefix="tls")

    await api.submit_job(fleet.job("by_client"))

    assert isinstance(await api.wait("by_client", limit=60), JobCompleted)


async def test_a_broker_that_another_authority_signed_for_is_not_believed(fleet: Fleet, scene: Scene) -> None:
    """Whoever answers at the address gets neither password nor jobs."""
    daemon = await start(fleet, scene, scene.stranger.certificate, scene.authority.sign("worker3"), online=False)

    error = await refused(daemon)
    assert "certificate verify failed" in error
    assert "amqp_ca_file" in error


async def test_without_a_certificate_the_broker_refuses(fleet: Fleet, scene: Scene) -> None:
    """And the daemon logs what is missing."""
    daemon = await start(fleet, scene, scene.authority.certificate, None, online=False)

    assert "amqp_cert_file" in await refused(daemon)


async def test_with_a_strangers_certificate_the_broker_refuses(fleet: Fleet, scene: Scene) -> None:
    """One that the fleet's authority has not signed is none."""
    daemon = await start(fleet, scene, scene.authority.certificate, scene.stranger.sign("worker"), online=False)

    assert "amqp_cert_file" in await refused(daemon)
