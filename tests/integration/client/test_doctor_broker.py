"""What doctor finds of a broker over AMQP, a real one: healthy, without rights, otherwise declared, and not there."""

import asyncio
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from tests.support.broker_users import RABBITMQCTL, rabbitmqctl, rabbitmqctl_environment, user_url

from training_worker.broker.names import Names
from training_worker.broker.permissions import Role, command_lines, commands
from training_worker.broker.topology import declare_topology, delete_topology
from training_worker.doctor import broker
from training_worker.doctor.findings import Finding, State
from training_worker.settings import Settings
from training_worker.testing.local_broker import PrivateBroker, free_port

pytestmark = pytest.mark.broker

NAMES = Names("fleet")
DELAYS = [30, 30, 120, 600]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[PrivateBroker]:
    """A node with a worker that has its rights, and one that has a dashboard's."""
    node = PrivateBroker(tmp_path_factory.mktemp("node"))
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    with node:
        for user, role in (("worker", Role.WORKER), ("poor", Role.DASHBOARD)):
            rabbitmqctl(node, "add_user", user, "secret")
            for _, *arguments in commands(role, NAMES, user=user):
                rabbitmqctl(node, *arguments)
        yield node


def look(url: str, **changes: float) -> dict[str, Finding]:
    found = list(broker.check(Settings(amqp_url=url, prefix=NAMES.prefix, **changes)))  # type: ignore[arg-type]
    assert all(finding.state is State.OK or finding.fix for finding in found)
    return {finding.name: finding for finding in found}


def test_a_healthy_broker_lets_a_worker_do_what_it_does(node: PrivateBroker) -> None:
    """With the least rights; what was tried is gone again, and what is not there yet is no fault."""
    found = look(user_url(node, "worker"))

    assert {name for name, finding in found.items() if finding.state is not State.OK} == {"management"}
    assert found["version"].found.startswith("RabbitMQ ")
    assert "the first worker that starts declares them" in found["queues"].found
    assert rabbitmqctl(node, "list_queues", "--quiet", "--no-table-headers", "name").split() == []
    assert "fleet" not in rabbitmqctl(node, "list_exchanges", "--quiet", "name")


def test_what_was_not_checked_is_reported_with_the_commands_that_check_it(node: PrivateBroker) -> None:
    """Each of them works."""
    found = look(user_url(node, "worker"))["management"]

    assert "the settings have no management_url" in found.found
    for command in str(found.fix).partition("  #")[0].split(" && "):
        program, *arguments = shlex.split(command)
        rabbitmqctl(node, *arguments, program=program)


def test_a_user_without_rights_is_reported_with_the_commands_that_grant_them(node: PrivateBroker) -> None:
    """As they stand in docs/operations.md."""
    found = look(user_url(node, "poor"))["permissions"]

    assert found.state is State.ERROR
    assert "cannot declare a quorum queue" in found.found
    assert found.fix == " && ".join(command_lines(Role.WORKER, NAMES, user="poor"))


def test_a_wrong_password_is_reported_as_that(node: PrivateBroker) -> None:
    """And the password is not."""
    found = look(user_url(node, "worker", "wrong-one"))["reachable"]

    assert found.state is State.ERROR
    assert "ACCESS_REFUSED" in found.found
    assert str(found.fix).startswith("rabbitmqctl change_password worker ")
    assert "wrong-one" not in f"{found}"


def test_a_broker_that_is_not_there_is_reported_with_its_address() -> None:
    """Nothing else of it is looked at."""
    port = free_port()
    found = look(f"amqp://worker:secret@127.0.0.1:{port}/")

    assert list(found) == ["reachable", "management", "consumer_timeout"]
    assert found["reachable"].found.startswith(f"127.0.0.1:{port}: ")
    assert str(found["reachable"].fix).startswith("nc -vz ")


def test_a_lease_longer_than_the_brokers_timeout_is_a_warning() -> None:
    """The broker's own limit cannot be read: its default is what is compared."""
    found = look(f"amqp://127.0.0.1:{free_port()}/", lease=7200.0)["consumer_timeout"]

    assert found.state is State.WARNING
    assert "consumer_timeout = 7200000 in rabbitmq.conf" in str(found.fix)


@pytest.fixture
def declared(node: PrivateBroker) -> Iterator[None]:
    """What a worker declares when it connects; all of it is gone afterwards."""
    asyncio.run(on(node, lambda channel: declare_topology(channel, NAMES, DELAYS)))
    yield
    asyncio.run(on(node, lambda channel: delete_topology(channel, NAMES, DELAYS)))


async def on(node: PrivateBroker, what: Callable[[AbstractChannel], Awaitable[object]]) -> None:
    """Do something with all rights."""
    async with await aio_pika.connect(node.url) as connection:
        await what(await connection.channel())


def declare_otherwise(node: PrivateBroker, name: str, messages: int = 0, **arguments: Any) -> None:
    """A queue in another's place, as somebody else might have declared it."""

    async def declare(channel: AbstractChannel) -> None:
        await channel.queue_delete(name)
        own = {key.replace("_", "-"): value for key, value in arguments.items()}
        await channel.declare_queue(name, durable=True, arguments=own)
        for _ in range(messages):
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), name)

    asyncio.run(on(node, declare))


@pytest.mark.usefixtures("declared")
def test_a_fleets_own_queues_are_as_they_should_be(node: PrivateBroker) -> None:
    """With those of this worker's delays, and the exchanges."""
    found = look(user_url(node, "worker"))

    assert found["queues"].found == "17 are there, as the workers declare them"
    assert found["exchanges"].found == "4 are there, as the workers declare them"


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    ("queue", "arguments", "expected"),
    [
        ("intake", {}, "x-dead-letter-exchange is none, where '' is needed"),
        ("dead", {"x_queue_type": "quorum"}, "x-delivery-limit is none, where 1000000 is needed"),
        ("tier.flux.24gb", {"x_queue_type": "quorum", "x_delivery_limit": 3}, "is needed"),
        ("tier.sdxl.2x24gb", {"x_queue_type": "quorum"}, "is needed"),
        (
            "retry.30",
            {
                "x_queue_type": "quorum",
                "x_dead_letter_exchange": "fleet.jobs",
                "x_dead_letter_strategy": "at-least-once",
                "x_overflow": "reject-publish",
                "x_message_ttl": 5,
            },
            "x-message-ttl is 5, where 30000 is needed",
        ),
        ("ledger", {"x_queue_type": "stream", "x_max_age": "1D"}, "x-max-age is 1D, where 30D is needed"),
        ("events.log", {"x_queue_type": "quorum"}, "x-queue-type is quorum, where stream is needed"),
    ],
)
def test_a_queue_that_is_otherwise_is_reported_with_what_makes_room(
    node: PrivateBroker, queue: str, arguments: dict[str, Any], expected: str
) -> None:
    """The command is carried out, and a worker declares the queue again."""
    declare_otherwise(node, f"fleet.{queue}", **arguments)

    found = {name: one for name, one in look(user_url(node, "worker")).items() if one.state is State.ERROR}

    assert list(found) == [f"queues.{queue}"]
    assert expected in found[f"queues.{queue}"].found
    carry_out(node, found[f"queues.{queue}"])
    asyncio.run(on(node, lambda channel: declare_topology(channel, NAMES, DELAYS)))
    assert look(user_url(node, "worker"))["queues"].state is State.OK


def carry_out(node: PrivateBroker, finding: Finding) -> None:
    _, *arguments = shlex.split(str(finding.fix).partition("  #")[0])
    rabbitmqctl(node, *arguments)


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize("queue", ["intake", "ledger"])
def test_what_a_queue_holds_is_not_thrown_away(node: PrivateBroker, queue: str) -> None:
    """Jobs are moved first; a history cannot be, and its loss is named."""
    kind = "stream" if queue == "ledger" else "quorum"
    declare_otherwise(node, f"fleet.{queue}", messages=2, x_queue_type=kind)

    found = look(user_url(node, "worker"))[f"queues.{queue}"]

    if queue == "intake":
        assert "holds 2 messages: " in found.found
        assert "shovel" in str(found.fix).partition("  #")[0]
        assert "once it is empty: rabbitmqctl delete_queue -p / fleet.intake" in str(found.fix)
    else:
        assert "loses its history" in str(found.fix)


@pytest.mark.usefixtures("declared")
def test_an_exchange_of_another_type_is_reported(node: PrivateBroker) -> None:
    """The command deletes it, and nothing else."""

    async def replace(channel: AbstractChannel) -> None:
        await channel.exchange_delete(NAMES.events)
        await channel.declare_exchange(NAMES.events, "fanout", durable=True)

    asyncio.run(on(node, replace))

    found = look(user_url(node, "worker"))["exchanges.events"]

    assert found.found == "fleet.events: type is fanout, where topic is needed"
    carry_out(node, found)
    asyncio.run(on(node, lambda channel: declare_topology(channel, NAMES, DELAYS)))
    assert look(user_url(node, "worker"))["exchanges"].state is State.OK


@pytest.mark.usefixtures("declared")
def test_one_that_is_missing_among_others_is_a_warning(node: PrivateBroker) -> None:
    """And is not declared by doctor."""
    asyncio.run(on(node, lambda channel: channel.queue_delete(NAMES.dead)))

    for _ in range(2):
        found = look(user_url(node, "worker"))["queues"]

        assert found.state is State.WARNING
        assert found.found == "fleet.dead not there, as others are"


@pytest.mark.usefixtures("declared")
def test_a_broker_with_an_alarm_is_reported_without_its_management(node: PrivateBroker) -> None:
    """It answers nothing once something was published, and is not waited for."""
    rabbitmqctl(node, "set_disk_free_limit", "1000000GB")
    try:
        began = time.monotonic()
        found = look(user_url(node, "worker"))
        seconds = time.monotonic() - began
    finally:
        rabbitmqctl(node, "set_disk_free_limit", "50MB")

    assert found["permissions"].found.startswith("cannot publish to it: no answer within ")
    assert str(found["permissions"].fix).startswith("rabbitmq-diagnostics alarms")
    assert found["queues"].state is State.OK
    assert seconds < 30


def test_a_node_on_this_host_reports_its_consumer_timeout(
    consumer_timeout_broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is shorter than half a lease is an error; the command fixes it."""
    for name, value in rabbitmqctl_environment(consumer_timeout_broker).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(RABBITMQCTL).parent}:{os.environ['PATH']}")

    short = look(consumer_timeout_broker.url, lease=60.0)["consumer_timeout"]
    fits = look(consumer_timeout_broker.url, lease=10.0)["consumer_timeout"]

    assert short.state is State.ERROR
    assert "the broker on this host allows 10 s" in short.found
    assert fits.state is State.OK
    carry_out(consumer_timeout_broker, short)
    assert "allows 60 s" in look(consumer_timeout_broker.url, lease=60.0)["consumer_timeout"].found


@pytest.mark.parametrize(
    ("report", "state"),
    [("3.9.29", State.ERROR), ("3.10.8", State.OK), ("4.1.0", State.OK), ("None", State.WARNING)],
)
def test_a_version_too_old_is_an_error(report: str, state: State) -> None:
    """3.10 is the least that has what the queues need."""
    assert broker.version(report).state is state
