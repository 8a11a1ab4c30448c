"""The checks of the broker's policies: whether one changes what the ownership of jobs depends on.

Measured on RabbitMQ 3.10: if a policy and a queue's arguments both have a number, the smaller one applies. A policy's
`overflow` takes precedence over the argument, its `dead-letter-exchange` does not; its routing key applies where the
arguments have none.
"""

import re
import shlex
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from training_worker.broker.names import Names
from training_worker.broker.topology import every_tier_queue, shared_queues
from training_worker.doctor.findings import Finding, State, of_broker
from training_worker.doctor.management_api import BrokerReport, Policy

NAMED = 3
AGE = re.compile(r"(\d+)([YMDhms])")
AGE_UNITS = {"Y": 31_536_000, "M": 2_592_000, "D": 86_400, "h": 3600, "m": 60, "s": 1}


class Kind(StrEnum):
    """The purposes of the fleet's queues and exchanges."""

    WAITING = "waiting"
    DELAYED = "delayed"
    LEASE = "lease"
    DEAD = "dead"
    LEDGER = "ledger"
    LOG = "log"
    ROUTING = "routing"
    COMMANDS = "commands"


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    """A queue or an exchange of the fleet, with the arguments that it is declared with."""

    name: str
    kind: Kind
    arguments: dict[str, Any] = {}


def things_of(names: Names, delays: Collection[int]) -> list[Thing]:
    """List all permanent queues and exchanges, whether they exist yet or not."""
    kinds = {names.dead: Kind.DEAD, names.ledger: Kind.LEDGER, names.events_log: Kind.LOG}
    kinds |= {names.delay_queue(seconds): Kind.DELAYED for seconds in delays}
    specs = {spec.name: spec for spec in (*shared_queues(names, delays), *every_tier_queue(names))}
    queues = [
        Thing(name=name, kind=kinds.get(name, Kind.WAITING), arguments=dict(spec.arguments))
        for name, spec in specs.items()
    ]
    exchanges = {names.jobs: Kind.ROUTING, names.retry: Kind.ROUTING, names.control: Kind.COMMANDS}
    return [*queues, *(Thing(name=name, kind=kind) for name, kind in exchanges.items())]


def is_looser(value: Any, ours: Any) -> bool:
    """Return whether a bound in a policy is no tighter than that of our own arguments; RabbitMQ 4 uses -1 for none."""
    if isinstance(value, int) and value < 0:
        return True
    return ours is not None and _number(value) >= _number(ours)


def _number(value: Any) -> float:
    """Return a stream's age, such as `7D`, as seconds; a number as it is. What is unreadable counts as the tightest."""
    if not isinstance(value, str):
        return float(value)
    found = AGE.fullmatch(value)
    return int(found[1]) * AGE_UNITS[found[2]] if found else 0.0


def _is_ours(value: Any, ours: Any) -> bool:
    return bool(value == ours)


def _never(*_: Any) -> bool:
    return False


class Harm(msgspec.Struct, frozen=True):
    """The effect of a policy's key on queues and exchanges of these kinds, unless its value changes nothing there."""

    key: str
    kinds: tuple[Kind, ...]
    does: str
    state: State = State.ERROR
    unless: Callable[[Any, Any], bool] = is_looser


CUT = "the history is cut, and jobs that have ended may be trained again"
EARLY = "jobs come back before their lease, grace or delay is over"
LOST = "jobs may be lost on their way from queue to queue"
WORN = "jobs that came back so often, as after restarts of workers, are given up"
ASTRAY = "jobs that are retried go to another queue, or to none"
UNNOTICED = "a job that no queue takes is not returned, and lost"
IN_VAIN = "a command that reaches nobody is answered as if it did"
JOB_QUEUES = (Kind.WAITING, Kind.DELAYED, Kind.LEASE)

HARMS = (
    Harm("message-ttl", (Kind.WAITING,), "jobs that wait for longer are given up"),
    Harm("message-ttl", (Kind.LEASE, Kind.DELAYED), EARLY),
    Harm("message-ttl", (Kind.DEAD,), "dead letters are dropped"),
    Harm("expires", (*JOB_QUEUES, Kind.DEAD), "a queue without consumers is deleted with what is in it"),
    Harm("overflow", JOB_QUEUES, LOST, unless=_is_ours),
    Harm("delivery-limit", (Kind.WAITING,), WORN),
    Harm("delivery-limit", (Kind.DEAD,), "dead letters that were looked at so often are dropped"),
    Harm("dead-letter-routing-key", (Kind.DELAYED,), ASTRAY, unless=_never),
    Harm("max-age", (Kind.LEDGER,), CUT),
    Harm("max-age", (Kind.LOG,), "events are gone sooner", State.WARNING),
    Harm("alternate-exchange", (Kind.ROUTING,), UNNOTICED, unless=_never),
    Harm("alternate-exchange", (Kind.COMMANDS,), IN_VAIN, State.WARNING, unless=_never),
    *(
        harm
        for key in ("max-length", "max-length-bytes")
        for harm in (
            Harm(key, (Kind.WAITING, Kind.DELAYED), "jobs are refused where it is full", State.WARNING),
            Harm(key, (Kind.LEASE,), "an owner cannot renew its lease"),
            Harm(key, (Kind.DEAD,), "the oldest dead letters are dropped"),
            Harm(key, (Kind.LEDGER,), CUT),
            Harm(key, (Kind.LOG,), "events are gone sooner", State.WARNING),
        )
    ),
)


def judge(report: BrokerReport, things: Collection[Thing], vhost: str) -> Iterator[Finding]:
    """Yield a finding for each harmful policy, one if there is none, and one for queues whose policies are unknown."""
    seen = {thing.name: report.queues.get(thing.name) or report.exchanges.get(thing.name) for thing in things}
    unknown = [name for name in seen if name in report.queues and report.queues[name].policy is msgspec.UNSET]
    if unknown:
        yield _unreadable(unknown, vhost)
    harmful = [
        *_harmful(report.policies, things, {name: one.policy for name, one in seen.items() if one}, "", vhost),
        *_harmful(
            report.operator_policies,
            things,
            {name: one.operator_policy for name, one in seen.items() if one},
            "operator_",
            vhost,
        ),
    ]
    yield from harmful
    if not harmful and not unknown:
        yield of_broker("policies", State.OK, "none changes what jobs depend on")


def _unreadable(unknown: list[str], vhost: str) -> Finding:
    found = f"the broker does not report which policies govern {_shortened(unknown)}"
    fix = f"rabbitmqctl list_queues -p {shlex.quote(vhost)} name policy operator_policy effective_policy_definition"
    return of_broker("policies", State.WARNING, found, fix)


def _harmful(
    policies: dict[str, Policy], things: Collection[Thing], governing: dict[str, Any], whose: str, vhost: str
) -> Iterator[Finding]:
    for policy in policies.values():
        governed = [thing for thing in things if governing.get(thing.name) == policy.name]
        harms = [(harm, harmed) for harm in HARMS if (harmed := _harmed(harm, policy.definition, governed))]
        if not harms:
            continue
        report = [
            f"{harm.key} = {policy.definition[harm.key]} on {_shortened(harmed)}: {harm.does}" for harm, harmed in harms
        ]
        yield of_broker(
            f"{whose}policies.{policy.name}",
            State.ERROR if any(harm.state is State.ERROR for harm, _ in harms) else State.WARNING,
            "; ".join(report),
            f"rabbitmqctl clear_{whose}policy -p {shlex.quote(vhost)} {shlex.quote(policy.name)}"
            "  # or set it again, with a pattern that leaves the fleet's names out",
        )


def _harmed(harm: Harm, definition: dict[str, Any], governed: Collection[Thing]) -> list[str]:
    if harm.key not in definition:
        return []
    value = definition[harm.key]
    return [
        thing.name
        for thing in governed
        if thing.kind in harm.kinds and not harm.unless(value, thing.arguments.get(f"x-{harm.key}"))
    ]


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
