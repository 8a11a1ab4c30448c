"""`rabbitmqctl` against a node of the tests' own, and users on it."""

import subprocess
from pathlib import Path
from urllib.parse import quote

from training_worker.testing.local_broker import PrivateBroker

RABBITMQCTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"


def rabbitmqctl_environment(node: PrivateBroker) -> dict[str, str]:
    """By which the command finds this node alone."""
    environ = node._environment()
    # Those are the node's own: a second one would need its ports.
    for name in ("RABBITMQ_DIST_PORT", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"):
        environ.pop(name)
    return environ


def rabbitmqctl(node: PrivateBroker, *arguments: str, program: str = "rabbitmqctl") -> str:
    """Run the command, or another of the broker's, against this node alone, and return what it prints."""
    done = subprocess.run(
        [str(Path(RABBITMQCTL).with_name(program)), "--node", node.name, *arguments],
        env=rabbitmqctl_environment(node),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def user_url(node: PrivateBroker, user: str, password: str = "secret") -> str:
    """Where this user connects."""
    return f"amqp://{quote(user)}:{quote(password)}@127.0.0.1:{node.port}/"
