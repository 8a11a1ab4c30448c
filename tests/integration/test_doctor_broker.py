"""What doctor finds of a broker, a real one: healthy, without rights, and not there."""

from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from tests.support.broker_users import rabbitmqctl, user_url

from training_worker.broker.names import Names
from training_worker.broker.rights import Role, command_lines, commands
from training_worker.demo.broker import PrivateBroker, free_port
from training_worker.doctor import broker
from training_worker.doctor.findings import Finding, State
from training_worker.settings import Settings

pytestmark = pytest.mark.broker

NAMES = Names("fleet")


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
    assert all(finding.state is State.OK or finding.mend for finding in found)
    return {finding.name: finding for finding in found}


def test_a_healthy_broker_lets_a_worker_do_what_it_does(node: PrivateBroker) -> None:
    """With the least rights; what was tried is gone again, and what is not there yet is no fault."""
    found = look(user_url(node, "worker"))

    assert {finding.state for finding in found.values()} == {State.OK}
    assert found["version"].found.startswith("RabbitMQ ")
    assert "the first worker that starts declares it" in found["queues"].found
    assert "doctor" not in rabbitmqctl(node, "list_queues", "--quiet", "name")


def test_a_user_without_rights_is_told_the_commands_that_give_them(node: PrivateBroker) -> None:
    """As they stand in docs/operations.md."""
    found = look(user_url(node, "poor"))["permissions"]

    assert found.state is State.ERROR
    assert "cannot declare a quorum queue" in found.found
    assert found.mend == " && ".join(command_lines(Role.WORKER, NAMES, user="poor"))


def test_a_wrong_password_is_told_as_that(node: PrivateBroker) -> None:
    """And the password is not."""
    found = look(user_url(node, "worker", "wrong-one"))["reachable"]

    assert found.state is State.ERROR
    assert "ACCESS_REFUSED" in found.found
    assert str(found.mend).startswith("rabbitmqctl change_password worker ")
    assert "wrong-one" not in f"{found}"


def test_a_broker_that_is_not_there_is_told_with_its_address() -> None:
    """Nothing else of it is looked at."""
    port = free_port()
    found = look(f"amqp://worker:secret@127.0.0.1:{port}/")

    assert list(found) == ["reachable", "consumer_timeout"]
    assert found["reachable"].found.startswith(f"127.0.0.1:{port}: ")
    assert str(found["reachable"].mend).startswith("nc -vz ")


def test_a_lease_longer_than_the_brokers_patience_is_warned_of() -> None:
    """The broker's own limit cannot be asked for: its default is what is compared."""
    found = look(f"amqp://127.0.0.1:{free_port()}/", lease=7200.0)["consumer_timeout"]

    assert found.state is State.WARNING
    assert str(found.mend).startswith("consumer_timeout = 7200000")


@pytest.mark.parametrize(
    ("told", "state"),
    [("3.9.29", State.ERROR), ("3.10.8", State.OK), ("4.1.0", State.OK), ("None", State.WARNING)],
)
def test_a_version_too_old_is_an_error(told: str, state: State) -> None:
    """3.10 is the least that has what the queues need."""
    assert broker.version(told).state is state
