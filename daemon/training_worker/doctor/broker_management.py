"""The checks that need the management API of the broker: policies, alarms, nodes, replicas and bindings."""

import asyncio
import contextlib
import shlex

import msgspec
from yarl import URL

from training_worker.broker.names import Names
from training_worker.broker.topology import every_tier_queue, shared_queues, topic_exchanges
from training_worker.doctor import broker_nodes, broker_policies
from training_worker.doctor.findings import Finding, State, of_broker
from training_worker.doctor.management_api import UNAUTHORIZED, BrokerReport, Management, ManagementError
from training_worker.ownership.lease import LeaseTerms, lease_arguments
from training_worker.settings import Settings

# A queue is counted every 5 s, and the counts are collected every 5 s: only then its policies are known.
GOVERNED_LIMIT = 15.0
POLL = 0.5
TIMEOUT_KEY = "consumer-timeout"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """The findings, and how long a policy lets a message of a lease queue be held, if one sets it (seconds)."""

    findings: list[Finding]
    consumer_timeout: float | None = None


async def look(settings: Settings, vhost: str, cluster: str | None = None, trial: str | None = None) -> Known:
    """Query the API, if the settings name one. ``cluster`` is the broker's AMQP name, ``trial`` a test queue."""
    if settings.management_url is None:
        return Known(findings=[_not_asked(vhost)])
    try:
        url = URL(settings.management_url)
    except ValueError as error:
        fix = "management_url in the settings: https://USER:PASSWORD@HOST:15671/"
        return Known(findings=[of_broker("management", State.WARNING, f"its address cannot be read: {error}", fix)])
    names = Names(settings.prefix)
    try:
        report = await _ask(Management(url, settings.amqp_ca_file), vhost, names, trial)
    except ManagementError as error:
        return Known(findings=[_cannot_ask(url, error, vhost)])
    if cluster is not None and report.overview.cluster_name != cluster:
        return Known(findings=[_another(report.overview.cluster_name, cluster)])
    return _known(settings, report, vhost, trial)


async def _ask(api: Management, vhost: str, names: Names, trial: str | None) -> BrokerReport:
    report = await api.report(vhost, topic_exchanges(names))
    # What is not known by the end is a finding.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GOVERNED_LIMIT):
            while trial in report.queues and report.queues[trial].policy is msgspec.UNSET:
                await asyncio.sleep(POLL)
                report = msgspec.structs.replace(report, queues=await api.queues(vhost))
    return report


def _known(settings: Settings, report: BrokerReport, vhost: str, trial: str | None) -> Known:
    names, delays = Names(settings.prefix), [settings.grace, *settings.retry_delays]
    things = broker_policies.things_of(names, delays)
    if trial is not None:
        things.append(_lease(settings, trial))
    specs = {spec.name: spec for spec in (*shared_queues(names, delays), *every_tier_queue(names))}
    findings = [
        of_broker("management", State.OK, f"{report.overview.cluster_name} answers"),
        *broker_policies.judge(report, things, vhost),
        *broker_nodes.check(report, list(specs.values())),
    ]
    return Known(findings=findings, consumer_timeout=_timeout(report, trial))


def _lease(settings: Settings, trial: str) -> broker_policies.Thing:
    """Describe a job's lease queue, which exists while the job runs; the trial queue stands for it."""
    terms = LeaseTerms(queue=trial, seconds=settings.lease, exchange="", key="")
    return broker_policies.Thing(name=trial, kind=broker_policies.Kind.LEASE, arguments=dict(lease_arguments(terms)))


def _timeout(report: BrokerReport, trial: str | None) -> float | None:
    queue = report.queues.get(trial or "")
    if queue is None:
        return None
    governing = [report.policies.get(str(queue.policy)), report.operator_policies.get(str(queue.operator_policy))]
    limits = [policy.definition[TIMEOUT_KEY] for policy in governing if policy and TIMEOUT_KEY in policy.definition]
    return min(limits) / 1000 if limits else None


def _not_asked(vhost: str) -> Finding:
    host = shlex.quote(vhost)
    listed = f"rabbitmqctl list_policies -p {host} && rabbitmqctl list_operator_policies -p {host}"
    rest = f"rabbitmqctl list_bindings -p {host} && rabbitmq-diagnostics alarms && rabbitmq-diagnostics cluster_status"
    found = "policies, alarms, nodes, replicas and bindings were not looked at: the settings have no management_url"
    fix = f"{listed} && {rest}  # on the broker's host; or management_url in the settings"
    return of_broker("management", State.WARNING, found, fix)


def _cannot_ask(url: URL, error: ManagementError, vhost: str) -> Finding:
    user = shlex.quote(url.user or "guest")
    if error.status == UNAUTHORIZED and "Login failed" not in str(error):
        fix = (
            f"rabbitmqctl set_user_tags {user} monitoring && "
            f"rabbitmqctl set_permissions -p {shlex.quote(vhost)} {user} '^$' '^$' '^$'"
        )
    elif error.status == UNAUTHORIZED:
        fix = f"rabbitmqctl change_password {user} NEW  # or management_url in the settings"
    elif "CERTIFICATE_VERIFY_FAILED" in str(error):
        fix = "amqp_ca_file in the settings: the authority that signed the management API's certificate"
    else:
        fix = f"rabbitmq-plugins enable rabbitmq_management  # on the broker's host; then: nc -vz {url.host} {url.port}"
    return of_broker("management", State.WARNING, f"{url.host}:{url.port} as {user} cannot be asked: {error}", fix)


def _another(report: str, cluster: str) -> Finding:
    found = f"management_url is the address of {report}, and the worker's broker is {cluster}"
    return of_broker("management", State.WARNING, found, "management_url in the settings: of the same broker")
