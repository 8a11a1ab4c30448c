"""The log's form, and what is never in it."""

import json
import subprocess
import sys

import pytest

from training_worker.logging_config import without_credentials

SCRIPT = """
import structlog
from training_worker.logging_config import configure_logging
configure_logging()
try:
    raise OSError("cannot reach amqp://user:pass@word@broker:5672/")
except OSError:
    structlog.get_logger().exception("broken", job="portrait")
"""


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        ("amqp://user:password@broker:5672/", "amqp://***@broker:5672/"),
        ("no amqps://a:b@c/ and no amqps://d:e@f/", "no amqps://***@c/ and no amqps://***@f/"),
        ("amqp://user:p@ss:word@broker/", "amqp://***@broker/"),
        ("amqp://broker/a@b", "amqp://broker/a@b"),
        ("mail a@b.c", "mail a@b.c"),
    ],
)
def test_addresses_have_no_credentials(message: str, logged: str) -> None:
    """Everything else stays as it is."""
    assert without_credentials(None, "", {"error": message, "pid": 1}) == {"error": logged, "pid": 1}


def test_without_a_terminal_each_line_is_json_with_its_traceback(pytestconfig: pytest.Config) -> None:
    """As under systemd, whose journal has one entry for each; a traceback keeps no secret either."""
    path = ":".join(str(pytestconfig.rootpath / name) for name in ("schemas", "presets", "daemon"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )

    (line,) = done.stderr.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["job"]) == ("broken", "error", "portrait")
    assert "OSError: cannot reach amqp://***@broker:5672/" in entry["exception"]
    assert "word" not in line.replace("training_worker", "")
