"""The least rights that each kind of user needs on the broker: what it may configure, write and read.

Everything is a regular expression over names, as RabbitMQ expects. A fleet that must be safe from others' workers
needs a virtual host of its own: workers write to queues by name, which RabbitMQ grants for all queues of a host or
none.
"""

import re
import shlex
from enum import StrEnum

import msgspec

from training_schemas.jobs import ModelFamily
from training_worker.broker.names import LEDGER_KEY, SUBMIT_KEY, Names

NOTHING = "^$"
ANY_KEY = ".*"

# The exclusive queue whose name a worker leaves to the broker: its inbox.
BROKER_NAMED = r"amq\.gen-.*"
DEFAULT_EXCHANGE = r"amq\.default"


class Role(StrEnum):
    """The kinds of users that connect."""

    WORKER = "worker"
    BACKEND = "backend"
    DASHBOARD = "dashboard"


class TopicRights(msgspec.Struct, frozen=True, kw_only=True):
    """The routing keys by which a user may publish to a topic exchange, and bind queues to it."""

    exchange: str
    write: str
    read: str


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """The rights of a user, as patterns."""

    configure: str
    write: str
    read: str
    topics: tuple[TopicRights, ...] = ()


def rights_of(role: Role, names: Names) -> Rights:
    """Return the least rights that a user of this role needs."""
    match role:
        case Role.WORKER:
            return _worker(names)
        case Role.BACKEND:
            return _backend(names)
        case Role.DASHBOARD:
            return Rights(configure=NOTHING, write=NOTHING, read=_all_of(re.escape(names.events_log)))


def commands(role: Role, names: Names, *, user: str, vhost: str = "/") -> list[list[str]]:
    """Return the `rabbitmqctl` commands that give a user these rights, and no others."""
    rights = rights_of(role, names)
    own = ["rabbitmqctl", "set_permissions", "-p", vhost, user, rights.configure, rights.write, rights.read]
    topics = [
        ["rabbitmqctl", "set_topic_permissions", "-p", vhost, user, topic.exchange, topic.write, topic.read]
        for topic in rights.topics
    ]
    return [own, *topics]


def command_lines(role: Role, names: Names, *, user: str, vhost: str = "/") -> list[str]:
    """Return the same commands, to be pasted into a shell."""
    return [shlex.join(command) for command in commands(role, names, user=user, vhost=vhost)]


def _worker(names: Names) -> Rights:
    prefix = re.escape(names.prefix)
    # Each name in full: another fleet's prefix may begin with this one's.
    exact = r"jobs|control|events|events\.log|retry|intake|dead|ledger"
    own = rf"{prefix}\.({exact}|(tier|retry|lease|owner)\..+)"
    families = "|".join(ModelFamily)
    return Rights(
        configure=_all_of(own, BROKER_NAMED),
        write=_all_of(own, BROKER_NAMED, DEFAULT_EXCHANGE),
        read=_all_of(own, BROKER_NAMED),
        topics=(
            TopicRights(exchange=names.jobs, write=rf"^({families})\.", read=ANY_KEY),
            TopicRights(exchange=names.retry, write=rf"^[0-9]+\.({families})\.", read=ANY_KEY),
            TopicRights(exchange=names.control, write=_all_of(LEDGER_KEY), read=ANY_KEY),
            TopicRights(exchange=names.events, write=r"^(job|worker)\.", read=ANY_KEY),
        ),
    )


def _backend(names: Names) -> Rights:
    exchanges = [re.escape(name) for name in (names.jobs, names.control)]
    queues = [re.escape(name) for name in (names.events_log, names.ledger, names.dead)]
    return Rights(
        configure=NOTHING,
        write=_all_of(*exchanges),
        read=_all_of(*queues),
        topics=(
            TopicRights(exchange=names.jobs, write=_all_of(SUBMIT_KEY), read=NOTHING),
            TopicRights(exchange=names.control, write=rf"^((job|worker)\..+|{LEDGER_KEY})$", read=NOTHING),
        ),
    )


def _all_of(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"
