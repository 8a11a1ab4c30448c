"""The broker that the demo and the tests start for themselves."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import aio_pika
import pytest

from training_worker.errors import BrokerError
from training_worker.testing.local_broker import NoBrokerError, PrivateBroker, find_broker

NOWHERE = Path("/nonexistent/rabbitmq-server")
LISTENING = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}

OWNER = """
import sys, time
from pathlib import Path
from training_worker.testing.local_broker import PrivateBroker

PrivateBroker(Path(sys.argv[1])).start()
print("started", flush=True)
time.sleep(600)
"""

FAKE_BROKER = """
import socket

connection, _ = socket.socket(fileno=0).accept()
connection.sendall(b"\\1")
"""

FAKE_DOCKER = """\
#!/bin/sh
echo "$*" >>"$0.calls"
case $1 in
    info) echo 28.0 ;;
    run) echo c0ffee ;;
    port) echo 127.0.0.1:{port} ;;
esac
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[PrivateBroker]:
    node = PrivateBroker(tmp_path_factory.mktemp("node"), config="log.console.level = debug")
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    with node:
        yield node


def processes(node: PrivateBroker) -> set[int]:
    """The ids of all processes with the node's environment."""
    mark = f"HOME={node.folder}\0".encode()
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes():
                found.add(int(environ.parent.name))
        except OSError:
            continue
    return found


def until_gone(node: PrivateBroker, seconds: float) -> set[int]:
    """What is left of the node when nothing is, or when time is up."""
    deadline = time.monotonic() + seconds
    while (left := processes(node)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def listeners(pids: set[int]) -> set[str]:
    """The addresses on which these processes listen, in the kernel's notation."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == LISTENING and row[9] in inodes}


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def on_disk(node: PrivateBroker, name: str, seconds: float = 20) -> bool:
    """Wait until the node has written down that there is such a queue, which it does a moment later."""
    deadline = time.monotonic() + seconds
    folder = node.folder / "data" / node.name
    while time.monotonic() < deadline:
        # Its files are renamed as they are written.
        with contextlib.suppress(FileNotFoundError):
            if any(name.encode() in path.read_bytes() for path in folder.glob("[!.]*.[LD]*")):
                return True
        time.sleep(0.05)
    return False


async def first_message(url: str, queue: str) -> bytes | None:
    connection = await aio_pika.connect(url)
    async with connection, connection.channel() as channel:
        message = await (await channel.get_queue(queue)).get(fail=False)
        return message.body if message else None


async def publish(url: str, queue: str, body: bytes, queue_type: str = "quorum") -> None:
    connection = await aio_pika.connect(url)
    async with connection, connection.channel() as channel:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": queue_type})
        await channel.default_exchange.publish(aio_pika.Message(body, delivery_mode=2), queue)


@pytest.mark.broker
async def test_a_node_accepts_and_delivers_messages(node: PrivateBroker) -> None:
    """What is published to a quorum queue comes out of it."""
    await publish(node.url, "hello", b"job")

    assert await first_message(node.url, "hello") == b"job"


@pytest.mark.broker
def test_a_node_listens_on_the_loopback_interface_alone(node: PrivateBroker) -> None:
    """That goes for AMQP, for Erlang's distribution and for the port mapper."""
    addresses = listeners(processes(node))

    assert {address.split(":")[0] for address in addresses} <= LOOPBACK
    assert len({address.split(":")[1] for address in addresses}) == 3


@pytest.mark.broker
async def test_two_nodes_side_by_side_share_nothing(node: PrivateBroker, tmp_path: Path) -> None:
    """A queue of one is unknown to the other, and stopping one leaves the other as it was."""
    with PrivateBroker(tmp_path) as other:
        await publish(other.url, "mine", b"job")
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await first_message(node.url, "mine")

    await publish(node.url, "after", b"still here")
    assert await first_message(node.url, "after") == b"still here"


async def test_a_killed_node_comes_back_where_it_was_with_what_it_had(private_broker: PrivateBroker) -> None:
    """A restart keeps the address and what was published; the end leaves no process behind."""
    url = private_broker.url
    await publish(url, "kept", b"job", queue_type="classic")
    assert on_disk(private_broker, "kept")

    private_broker.restart()

    assert private_broker.url == url
    assert await first_message(url, "kept") == b"job"

    private_broker.stop()
    private_broker.stop()
    assert until_gone(private_broker, 5) == set()


@pytest.mark.broker
def test_a_node_ends_with_an_owner_that_is_killed(node: PrivateBroker, tmp_path: Path) -> None:
    """Nobody had the time to stop it, yet nothing stays behind."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, env=environ, start_new_session=True
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"started\n"
        orphan = PrivateBroker(tmp_path)
        assert processes(orphan)
        owner.send_signal(signal.SIGKILL)

    assert until_gone(orphan, 20) == set()


@pytest.mark.broker
def test_settings_that_the_server_refuses_are_shown(node: PrivateBroker, tmp_path: Path) -> None:
    """The error ends with the end of the log, and nothing stays behind."""
    broken = PrivateBroker(tmp_path, config="no_such_setting = 1")

    with pytest.raises(BrokerError, match=r"(?s)cannot start a RabbitMQ node: it ended.*no_such_setting"):
        broken.start()

    assert until_gone(broken, 5) == set()


@pytest.mark.broker
def test_extra_settings_reach_the_node(node: PrivateBroker) -> None:
    """They are lines of rabbitmq.conf; these make a verbose log."""
    assert "[debug]" in node.log.read_text(errors="replace")


@pytest.mark.broker
def test_a_port_that_is_in_use_is_named(node: PrivateBroker, tmp_path: Path) -> None:
    """The node that has the port is not mistaken for the one that was requested."""
    with pytest.raises(BrokerError, match=f"port {node.port} of 127.0.0.1 is in use"):
        PrivateBroker(tmp_path, port=node.port).start()


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The path in the message is the one that was tried."""
    with pytest.raises(BrokerError, match=f"there is no {NOWHERE}"):
        PrivateBroker(tmp_path, server=NOWHERE).start()


def test_the_named_broker_wins_and_nothing_is_started(tmp_path: Path) -> None:
    """With TRAINING_AMQP_URL set, neither the server nor Docker is so much as looked for."""
    server = executable(tmp_path / "rabbitmq-server", '#!/bin/sh\ntouch "$0.called"\n')
    docker = executable(tmp_path / "docker", FAKE_DOCKER)
    environ = {"TRAINING_AMQP_URL": "amqp://elsewhere/"}

    with find_broker(environ, server=server, docker=str(docker)) as broker:
        assert broker.url == "amqp://elsewhere/"

    assert sorted(path.name for path in tmp_path.iterdir()) == ["docker", "rabbitmq-server"]


def test_without_a_server_a_container_is_started_and_removed(tmp_path: Path) -> None:
    """The container's port on the loopback interface is found out, and used once a broker answers there."""
    with socket.create_server(("127.0.0.1", 0)) as broker_socket:
        port = broker_socket.getsockname()[1]
        docker = executable(tmp_path / "docker", FAKE_DOCKER.format(port=port))
        answer = [sys.executable, "-c", FAKE_BROKER]
        with (
            subprocess.Popen(answer, stdin=broker_socket.fileno()),
            find_broker({}, server=NOWHERE, docker=str(docker)) as found,
        ):
            assert found.url == f"amqp://guest:guest@127.0.0.1:{port}/"

    assert (tmp_path / "docker.calls").read_text().splitlines() == [
        "info --format {{.ServerVersion}}",
        "run --rm --detach --publish 127.0.0.1::5672 rabbitmq:3.13",
        "port c0ffee 5672/tcp",
        "rm --force --volumes c0ffee",
    ]


def test_without_any_broker_the_three_ways_to_one_are_named() -> None:
    """One message lists all that would do."""
    with (
        pytest.raises(NoBrokerError, match=r"(?s)TRAINING_AMQP_URL.*rabbitmq-server.*Docker"),
        find_broker({}, server=NOWHERE, docker="/nonexistent/docker"),
    ):
        pass
