"""The checks of the broker's nodes, by its management API: alarms, replicas, and bindings of the fleet's queues."""

from collections.abc import Collection, Iterator

from training_worker.broker.topology import QueueSpec
from training_worker.doctor.findings import Finding, State, of_broker
from training_worker.doctor.management_api import Alarm, BrokerReport

FIXES = {
    "disk space": "rabbitmq-diagnostics -n {node} status  # free space on its host, or lower disk_free_limit",
    "memory": "rabbitmq-diagnostics -n {node} memory_breakdown --unit MB  # more memory, or fewer who use it",
}


def check(report: BrokerReport, specs: Collection[QueueSpec]) -> Iterator[Finding]:
    """Find what is wrong with the broker's nodes, and with these queues."""
    yield from _alarms(report.alarms)
    yield from _nodes(report)
    yield _majority(report, specs)
    yield _bindings(report, specs)


def _alarms(alarms: list[Alarm]) -> Iterator[Finding]:
    if not alarms:
        yield of_broker("alarms", State.OK, "none: messages are accepted")
    for alarm in alarms:
        found = f"{alarm.node} has too little {alarm.resource}: no message is accepted"
        fix = FIXES.get(alarm.resource, "rabbitmq-diagnostics -n {node} alarms").format(node=alarm.node)
        yield of_broker("alarms", State.ERROR, found, fix)


def _nodes(report: BrokerReport) -> Iterator[Finding]:
    down = [node.name for node in report.nodes if not node.running]
    apart = [node.name for node in report.nodes if node.partitions]
    if apart:
        found = f"{', '.join(apart)} went on without the others, and their contents differ"
        yield of_broker(
            "nodes", State.ERROR, found, "rabbitmqctl stop_app && rabbitmqctl start_app  # on the smaller side"
        )
    if down:
        found = f"{', '.join(down)} of {len(report.nodes)} do not run"
        yield of_broker("nodes", State.WARNING, found, _start(down))
    if not apart and not down:
        yield of_broker("nodes", State.OK, f"{len(report.nodes)}: all run")


def _majority(report: BrokerReport, specs: Collection[QueueSpec]) -> Finding:
    there = [report.queues[spec.name] for spec in specs if spec.name in report.queues]
    stuck = [queue for queue in there if queue.members and len(queue.online) * 2 <= len(queue.members)]
    if not stuck:
        return of_broker("majorities", State.OK, "each queue has most of its replicas")
    gone = {node for queue in stuck for node in queue.members if node not in queue.online}
    counts = ", ".join(f"{queue.name} {len(queue.online)} of {len(queue.members)}" for queue in stuck)
    found = f"nothing goes in or out of queues that lack replicas: {counts}"
    return of_broker("majorities", State.ERROR, found, _start(sorted(gone)))


def _start(nodes: list[str]) -> str:
    hosts = ", ".join(node.partition("@")[2] for node in nodes)
    return f"systemctl start rabbitmq-server  # on {hosts}"


def _bindings(report: BrokerReport, specs: Collection[QueueSpec]) -> Finding:
    needed = {(exchange, key, spec.name) for spec in specs for exchange, key in spec.bindings}
    needed = {one for one in needed if one[2] in report.queues}
    missing = sorted(needed - report.bindings)
    if not missing:
        return of_broker("bindings", State.OK, f"all {len(needed)} of the queues that are there")
    lost = "; ".join(f"{queue} is not bound to {exchange} by {key}" for exchange, key, queue in missing)
    fix = "systemctl reload training-worker  # a worker binds its queues when it connects"
    return of_broker("bindings", State.ERROR, lost, fix)
