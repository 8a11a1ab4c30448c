"""What doctor makes of what the management API reports: each policy that does harm, nodes, replicas, bindings."""

from typing import Any

import msgspec
import pytest

from training_worker.broker.names import Names
from training_worker.broker.topology import QueueSpec
from training_worker.doctor import broker_management, broker_nodes
from training_worker.doctor.broker_policies import is_looser, judge, things_of
from training_worker.doctor.findings import Finding, State
from training_worker.doctor.management_api import Alarm, BrokerReport, Governed, Node, Overview, Policy
from training_worker.settings import Settings

NAMES = Names("fleet")
DELAYS = [30, 600]
LEASE = "fleet.lease.doctor-1"


def report(definition: dict[str, Any], *governed: str, operator: bool = False, **changes: Any) -> BrokerReport:
    """A broker whose one policy governs these queues and exchanges, and no others."""
    policies = {"p": Policy(name="p", definition=definition)}
    every = [thing.name for thing in things_of(NAMES, DELAYS)] + [LEASE]
    entries = {one: Governed(name=one, policy=None) for one in every}
    for one in governed:
        policy, operator_policy = (None, "p") if operator else ("p", None)
        entries[one] = Governed(name=one, policy=policy, operator_policy=operator_policy)
    plain = BrokerReport(
        overview=Overview(),
        policies={} if operator else policies,
        operator_policies=policies if operator else {},
        queues=entries,
        exchanges={},
        bindings=set(),
        nodes=[],
        alarms=[],
    )
    return msgspec.structs.replace(plain, **changes)


def judged(broker: BrokerReport) -> list[Finding]:
    lease = broker_management._lease(Settings(lease=120), LEASE)
    return list(judge(broker, [*things_of(NAMES, DELAYS), lease], "/"))


@pytest.mark.parametrize(
    ("definition", "governed", "state", "expected"),
    [
        ({"message-ttl": 60_000}, NAMES.intake, State.ERROR, "given up"),
        ({"message-ttl": 119_999}, LEASE, State.ERROR, "come back before"),
        ({"message-ttl": 120_000}, LEASE, State.OK, "none"),
        ({"message-ttl": 60_000}, NAMES.delay_queue(600), State.ERROR, "come back before"),
        ({"message-ttl": 60_000}, NAMES.delay_queue(30), State.OK, "none"),
        ({"message-ttl": 60_000}, NAMES.dead, State.ERROR, "dead letters are dropped"),
        ({"expires": 10**9}, "fleet.tier.flux.2x24gb", State.ERROR, "is deleted"),
        ({"expires": 10**9}, NAMES.delay_queue(30), State.ERROR, "is deleted"),
        ({"expires": 1_199_999}, LEASE, State.ERROR, "is deleted"),
        ({"expires": 1_200_000}, LEASE, State.OK, "none"),
        ({"overflow": "drop-head"}, NAMES.intake, State.ERROR, "may be lost"),
        ({"overflow": "reject-publish"}, NAMES.intake, State.OK, "none"),
        ({"delivery-limit": 20}, NAMES.intake, State.ERROR, "came back so often"),
        ({"delivery-limit": 1000}, NAMES.intake, State.OK, "none"),
        ({"delivery-limit": -1}, NAMES.intake, State.OK, "none"),
        ({"delivery-limit": 1000}, NAMES.dead, State.ERROR, "looked at"),
        ({"dead-letter-routing-key": "x"}, NAMES.delay_queue(30), State.ERROR, "another queue"),
        ({"dead-letter-routing-key": "x"}, NAMES.intake, State.OK, "none"),
        ({"dead-letter-exchange": "x"}, NAMES.intake, State.OK, "none"),
        ({"max-length": 1}, NAMES.intake, State.WARNING, "refused"),
        ({"max-length": 1}, LEASE, State.ERROR, "cannot renew"),
        ({"max-length-bytes": 1}, NAMES.dead, State.ERROR, "dropped"),
        ({"max-length-bytes": 1}, NAMES.ledger, State.ERROR, "trained again"),
        ({"max-length-bytes": 1}, NAMES.events_log, State.WARNING, "gone sooner"),
        ({"max-age": "29D"}, NAMES.ledger, State.ERROR, "trained again"),
        ({"max-age": "1Y"}, NAMES.ledger, State.OK, "none"),
        ({"max-age": "3D"}, NAMES.events_log, State.WARNING, "gone sooner"),
        ({"alternate-exchange": "x"}, NAMES.jobs, State.ERROR, "not returned"),
        ({"alternate-exchange": "x"}, NAMES.control, State.WARNING, "reaches nobody"),
        ({"queue-leader-locator": "balanced"}, NAMES.intake, State.OK, "none"),
    ],
)
def test_a_policy_is_judged_by_what_it_does_to_what_it_governs(
    definition: dict[str, Any], governed: str, state: State, expected: str
) -> None:
    """The same value may be harmless for one queue and not for another."""
    for operator, whose in ((False, ""), (True, "operator_")):
        [found] = judged(report(definition, governed, operator=operator))

        assert (found.state, expected in found.found) == (state, True)
        if state is not State.OK:
            assert found.name == f"{whose}policies.p"
            assert str(found.fix).startswith(f"rabbitmqctl clear_{whose}policy -p / p  #")
            assert governed in found.found


def test_a_policy_that_governs_nothing_of_the_fleet_does_no_harm() -> None:
    """Others may have theirs."""
    assert [one.state for one in judged(report({"message-ttl": 1}))] == [State.OK]


def test_a_policy_is_reported_once_with_all_that_it_does() -> None:
    """And of many queues only the first are named."""
    tiers = [thing.name for thing in things_of(NAMES, DELAYS) if ".tier." in thing.name]

    [found] = judged(report({"message-ttl": 1, "expires": 1, "ha-mode": "all"}, *tiers))

    assert found.found.count("; ") == 1
    assert f"and {len(tiers) - 3} more" in found.found


def test_queues_that_nothing_is_known_of_are_reported() -> None:
    """As where the broker keeps no statistics."""
    broker = report({})
    broker.queues[NAMES.intake] = Governed(name=NAMES.intake)

    [found] = judged(broker)

    assert found.state is State.WARNING
    assert found.found.endswith(f"govern {NAMES.intake}")
    assert str(found.fix).startswith("rabbitmqctl list_queues -p / name policy")


@pytest.mark.parametrize(
    ("value", "ours", "looser"),
    [("7D", "7D", True), ("168h", "7D", True), ("6D", "7D", False), ("soon", "7D", False), (5, None, False)],
)
def test_bounds_are_compared_in_their_units(value: Any, ours: Any, looser: bool) -> None:
    """What cannot be read is no bound that is loose enough."""
    assert is_looser(value, ours) is looser


def test_a_policys_consumer_timeout_is_that_of_the_lease_queues() -> None:
    """From RabbitMQ 3.12 on; of an operator's and another the shorter."""
    broker = report({"consumer-timeout": 5000}, LEASE, operator=True)

    assert broker_management._timeout(broker, LEASE) == 5.0
    assert broker_management._timeout(broker, None) is None
    assert broker_management._timeout(report({"consumer-timeout": 5000}), LEASE) is None


SPEC = QueueSpec(name="fleet.intake", arguments={}, bindings=(("fleet.jobs", "submit"),))
BOUND = {("fleet.jobs", "submit", "fleet.intake")}


def condition(*, online: int = 3, members: int = 3, **changes: Any) -> dict[str, Finding]:
    """What is found of a cluster with one queue, which is as it should be but for these changes."""
    names = [f"rabbit@{letter}" for letter in "abc"]
    queue = Governed(name="fleet.intake", policy=None, members=names[:members], online=names[:online])
    state = {"queues": {"fleet.intake": queue}, "bindings": BOUND, "nodes": [Node(name=name) for name in names]}
    return {one.name: one for one in broker_nodes.check(report({}, **(state | changes)), [SPEC])}


def test_a_cluster_that_is_well_has_no_finding_but_ok() -> None:
    """Of each thing one."""
    assert {name: one.state for name, one in condition().items()} == dict.fromkeys(
        ("alarms", "nodes", "majorities", "bindings"), State.OK
    )


@pytest.mark.parametrize(
    ("changes", "name", "state", "fix"),
    [
        ({"alarms": [Alarm(node="n", resource="memory")]}, "alarms", State.ERROR, "rabbitmq-diagnostics -n n memory_"),
        ({"alarms": [Alarm(node="n", resource="disk space")]}, "alarms", State.ERROR, "rabbitmq-diagnostics -n n stat"),
        ({"alarms": [Alarm(node="n", resource="new")]}, "alarms", State.ERROR, "rabbitmq-diagnostics -n n alarms"),
        (
            {"nodes": [Node(name="r@a", running=False)]},
            "nodes",
            State.WARNING,
            "systemctl start rabbitmq-server  # on a",
        ),
        ({"nodes": [Node(name="r@a", partitions=["r@b"])]}, "nodes", State.ERROR, "rabbitmqctl stop_app && "),
        ({"online": 1}, "majorities", State.ERROR, "systemctl start rabbitmq-server  # on b, c"),
        (
            {"online": 1, "members": 2},
            "majorities",
            State.ERROR,
            "systemctl start rabbitmq-server  # on b",
        ),
        ({"bindings": set()}, "bindings", State.ERROR, "systemctl reload training-worker"),
    ],
)
def test_what_a_cluster_suffers_from_is_reported(changes: dict[str, Any], name: str, state: State, fix: str) -> None:
    """With the command for the node that it is about."""
    found = condition(**changes)

    assert {one: finding.state for one, finding in found.items() if finding.state is not State.OK} == {name: state}
    assert str(found[name].fix).startswith(fix)


def test_two_of_three_replicas_are_enough() -> None:
    """And a classic queue has none."""
    assert condition(online=2)["majorities"].state is State.OK
    assert condition(online=0, members=0)["majorities"].state is State.OK
