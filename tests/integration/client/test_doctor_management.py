"""What doctor finds by RabbitMQ's management API, a real one: policies, alarms, bindings, and who may ask."""

import asyncio
import contextlib
import shlex
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from tests.support.authority import Authority
from tests.support.broker_users import rabbitmqctl, user_url
from tests.support.managed import QUEUE_TICK, TLS, ManagedBroker
from yarl import URL

from training_worker.broker.names import Names
from training_worker.broker.permissions import Role, commands
from training_worker.broker.topology import declare_topology
from training_worker.doctor import broker, broker_management
from training_worker.doctor.findings import Finding, State
from training_worker.doctor.management_api import Management, ManagementError
from training_worker.settings import Settings
from training_worker.testing.local_broker import PrivateBroker, free_port

pytestmark = pytest.mark.broker

NAMES = Names("fleet")
DELAYS = [30, 120, 600]
SETTLED = 60.0
ALL_WELL = ["management", "policies", "alarms", "nodes", "majorities", "bindings"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[ManagedBroker]:
    """A node with a worker, one who may look, as docs/operations.md says, and a fleet's queues."""
    node = ManagedBroker(tmp_path_factory.mktemp("node"))
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    with node:
        rabbitmqctl(node, "eval", QUEUE_TICK)
        rabbitmqctl(node, "add_user", "worker", "secret")
        for _, *arguments in commands(Role.WORKER, NAMES, user="worker"):
            rabbitmqctl(node, *arguments)
        add_onlooker(node, "onlooker", "monitoring")
        asyncio.run(on(node, lambda channel: declare_topology(channel, NAMES, DELAYS)))
        yield node


def add_onlooker(node: PrivateBroker, user: str, *tags: str) -> None:
    rabbitmqctl(node, "add_user", user, "secret")
    rabbitmqctl(node, "set_user_tags", user, *tags)
    rabbitmqctl(node, "set_permissions", "-p", "/", user, "^$", "^$", "^$")


async def on(node: PrivateBroker, what: Callable[[AbstractChannel], Awaitable[object]]) -> None:
    """Do something with all rights."""
    async with await aio_pika.connect(node.url) as connection:
        await what(await connection.channel())


def look(node: ManagedBroker, user: str = "onlooker", password: str = "secret", **changes: Any) -> dict[str, Finding]:
    settings = {"management_url": node.management_url(user, password), "amqp_url": user_url(node, "worker")} | changes
    found = list(broker.check(Settings(prefix=NAMES.prefix, **settings)))
    assert all(finding.state is State.OK or finding.fix for finding in found)
    assert password not in f"{found}"
    return {finding.name: finding for finding in found}


def carry_out(node: PrivateBroker, finding: Finding) -> None:
    for command in str(finding.fix).partition("  #")[0].split(" && "):
        _, *arguments = shlex.split(command)
        rabbitmqctl(node, *arguments)


def not_ok(found: dict[str, Finding]) -> dict[str, State]:
    return {name: finding.state for name, finding in found.items() if finding.state is not State.OK}


def test_a_healthy_broker_has_no_finding_but_ok(node: ManagedBroker) -> None:
    """The one who looks needs the tag and no right to anything; what was tried is gone."""
    found = look(node)

    assert not_ok(found) == {}
    assert [name for name in found if name in ALL_WELL] == ALL_WELL
    assert "doctor" not in rabbitmqctl(node, "list_queues", "--quiet", "name")


def test_policies_that_do_harm_are_told_with_what_clears_them(node: ManagedBroker) -> None:
    """As the broker applies them: by priority, to what they fit; also those for leases, of which none is there."""
    definitions = {
        ("set_policy", "ttl", r"^fleet\.(intake|tier)", '{"message-ttl": 60000}', "0", "queues"),
        ("set_policy", "short-lease", r"^fleet\.lease\.", '{"expires": 60000}', "0", "queues"),
        ("set_policy", "cut", r"ledger$", '{"max-age": "1D"}', "0", "queues"),
        ("set_policy", "astray", r"^fleet\.jobs$", '{"alternate-exchange": "amq.fanout"}', "0", "exchanges"),
        # Beaten by one of a higher priority that does no harm, not for streams, and of no fleet.
        ("set_policy", "beaten", r"^fleet\.dead$", '{"max-length": 1}', "0", "queues"),
        ("set_policy", "harmless", r"^fleet\.dead$", '{"delivery-limit": 2000000}', "5", "queues"),
        ("set_policy", "unfit", r"^fleet\.events\.log$", '{"message-ttl": 1}', "0", "queues"),
        ("set_policy", "others", r"^fleet2\.", '{"message-ttl": 1}', "0", "queues"),
        ("set_operator_policy", "bound", r"^fleet\.retry", '{"expires": 3600000}', "0", "queues"),
    }
    for command, name, pattern, definition, priority, kind in definitions:
        options = ("--priority", priority, "--apply-to", kind)
        rabbitmqctl(node, command, *options, "-p", "/", name, pattern, definition)

    found = completed(
        node, {f"policies.{name}" for name in ("ttl", "short-lease", "cut", "astray")} | {"operator_policies.bound"}
    )

    assert set(not_ok(found).values()) == {State.ERROR}
    assert "message-ttl = 60000 on fleet.intake, " in found["policies.ttl"].found
    for name in not_ok(found):
        carry_out(node, found[name])
    for name in ("beaten", "harmless", "unfit", "others"):
        rabbitmqctl(node, "clear_policy", "-p", "/", name)
    completed(node, set())


def completed(node: ManagedBroker, names: set[str]) -> dict[str, Finding]:
    """What is found once no more than these names are not ok; the broker counts its queues every 5 s."""
    deadline = time.monotonic() + SETTLED
    while set(not_ok(found := look(node))) != names:
        assert time.monotonic() < deadline, not_ok(found)
    return found


def test_an_alarm_is_told_with_its_node(node: ManagedBroker) -> None:
    """Beside what follows from it over AMQP."""
    rabbitmqctl(node, "set_disk_free_limit", "1000000GB")
    try:
        found = look(node)
    finally:
        rabbitmqctl(node, "set_disk_free_limit", "50MB")

    assert not_ok(found) == {"permissions": State.ERROR, "alarms": State.ERROR}
    assert found["alarms"].found == f"{node.name} has too little disk space: no message is accepted"


def test_a_queue_that_is_not_bound_is_told(node: ManagedBroker) -> None:
    """AMQP cannot tell."""

    async def unbind(channel: AbstractChannel) -> None:
        await (await channel.get_queue(NAMES.intake)).unbind(NAMES.jobs, "submit")

    asyncio.run(on(node, unbind))

    found = look(node)

    assert not_ok(found) == {"bindings": State.ERROR}
    assert found["bindings"].found == "fleet.intake is not bound to fleet.jobs by submit"
    asyncio.run(on(node, lambda channel: declare_topology(channel, NAMES, DELAYS)))
    assert not_ok(look(node)) == {}


def test_policies_are_told_where_amqp_is_not_there(node: ManagedBroker) -> None:
    """The API may be what still answers."""
    found = look(node, amqp_url=f"amqp://worker:secret@127.0.0.1:{free_port()}/")

    assert not_ok(found) == {"reachable": State.ERROR}
    assert [name for name in found if name in ALL_WELL] == ALL_WELL


@pytest.mark.parametrize("tags", [(), ("management",), ("policymaker",)])
def test_one_who_may_not_ask_is_told_the_commands_that_let_him(node: ManagedBroker, tags: tuple[str, ...]) -> None:
    """The tag `monitoring`, and a place in the virtual host."""
    user = f"poor-{'-'.join(tags)}"
    rabbitmqctl(node, "add_user", user, "secret")
    rabbitmqctl(node, "set_user_tags", user, *tags)

    found = look(node, user)["management"]

    assert found.state is State.WARNING
    carry_out(node, found)
    assert not_ok(look(node, user)) == {}


def test_a_wrong_password_is_told_as_that(node: ManagedBroker) -> None:
    """And the password is not."""
    found = look(node, password="wrong-one")["management"]

    assert found.state is State.WARNING
    assert found.found.endswith("401: Login failed")
    assert str(found.fix).startswith("rabbitmqctl change_password onlooker ")


def test_an_api_that_is_not_there_is_told_with_what_enables_it(node: ManagedBroker) -> None:
    """A warning: no job depends on it."""
    for url in (f"http://a:secret@127.0.0.1:{free_port()}/", "http://a:secret@no-such-host.invalid:1/"):
        found = look(node, management_url=url)["management"]

        assert found.state is State.WARNING
        assert str(found.fix).startswith("rabbitmq-plugins enable rabbitmq_management  #")


def test_an_address_that_is_none_is_told(node: ManagedBroker) -> None:
    """As one with words for its port."""
    found = look(node, management_url="http://a:secret@host:words/")["management"]

    assert found.state is State.WARNING


def test_the_api_of_another_broker_is_not_believed(node: ManagedBroker) -> None:
    """Its policies are not those of the fleet."""
    rabbitmqctl(node, "set_cluster_name", "one")
    try:
        # Known to a client from when it connects, to the API at once.
        found = asyncio.run(
            broker_management.look(Settings(management_url=node.management_url("onlooker")), "/", "another")
        )
    finally:
        rabbitmqctl(node, "set_cluster_name", node.name)

    [finding] = found.findings
    assert finding.state is State.WARNING
    assert finding.found == "management_url is the address of one, and the worker's broker is another"


@asynccontextmanager
async def server(answer: bytes, *, ends: bool = True) -> AsyncIterator[Management]:
    """Somebody who answers each request with this, and may keep the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if ends:
            writer.close()
        # Or once the other has given up.
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    served = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with served:
        port = served.sockets[0].getsockname()[1]
        yield Management(URL(f"http://a:secret@127.0.0.1:{port}/"), None, limit=1.0)


@pytest.mark.parametrize(
    ("answer", "ends", "words"),
    [
        (b"", False, "no answer within 1 s"),
        (b"HTTP/1.1 200 OK\r\n", False, "no answer within 1 s"),
        (b"", True, "not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", True, "cannot be read"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", True, "cannot be read"),
        (b"HTTP/1.1 500 Oh\r\n\r\n{}", True, "500: no reason"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", True, "302: no reason"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", True, "cannot be read"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 17 * 2**20, True, "more than"),
    ],
)
async def test_whoever_answers_instead_is_told_in_a_bounded_time(answer: bytes, words: str, *, ends: bool) -> None:
    """Nobody is followed elsewhere."""
    async with server(answer, ends=ends) as management:
        with pytest.raises(ManagementError, match=words):
            await management.report("/", ())


def test_the_api_over_tls_is_believed_by_its_authority(tmp_path: Path, missing: Callable[[str], NoReturn]) -> None:
    """That of `amqp_ca_file`, and no other."""
    if shutil.which("openssl") is None:
        missing("no openssl is installed")
    authority, stranger = Authority(tmp_path / "ours", "fleet CA"), Authority(tmp_path / "theirs", "another CA")
    certificate, key = authority.sign("broker")
    node = ManagedBroker(tmp_path / "node", TLS, ca=authority.certificate, certificate=certificate, key=key)
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    with node:
        url = node.management_url("guest", "guest", "https")
        found = {
            name: asyncio.run(broker_management.look(Settings(management_url=url, amqp_ca_file=ca), "/")).findings[0]
            for name, ca in {"ours": authority.certificate, "theirs": stranger.certificate, "none": None}.items()
        }

    assert {name: finding.state for name, finding in found.items()} == {
        "ours": State.OK,
        "theirs": State.WARNING,
        "none": State.WARNING,
    }
    assert str(found["theirs"].fix).startswith("amqp_ca_file in the settings: ")
