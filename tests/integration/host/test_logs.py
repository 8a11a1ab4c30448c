"""What a real daemon logs: who is meant is always named, and no secret is."""

import json
import signal
from typing import Any
from urllib.parse import urlsplit

from tests.support.fleet import Daemon, Fleet

PASSWORD = "s3cret-9c1f"
VERBOSE = ("--verbose",)

# The address comes from the environment.
BY_ENVIRONMENT = "import os; os.environ['TRAINING_AMQP_URL'] = {url!r}; from training_worker.cli import main; main()"


def entries(daemon: Daemon) -> list[dict[str, Any]]:
    """All that was logged, which is JSON without a terminal."""
    return [json.loads(line) for line in daemon.log.read_text().splitlines()]


def with_password(url: str) -> str:
    """The broker's address with a password that is not its."""
    parts = urlsplit(url)
    return f"amqp://nobody:{PASSWORD}@{parts.hostname}:{parts.port or 5672}{parts.path}"


async def test_each_line_of_a_jobs_life_names_job_attempt_and_gpu(fleet: Fleet) -> None:
    """From the claim on: they are bound once, and not left to whoever writes the line."""
    daemon = await fleet.start(mode="crash")
    await fleet.submit("portrait", max_attempts=2)
    await fleet.events("portrait")
    daemon.signal(signal.SIGTERM)
    await daemon.ended()

    lines = entries(daemon)
    started = [(line["job"], line["attempt"], line["gpu"]) for line in lines if line["event"] == "trainer_started"]
    ended = [(line["job"], line["attempt"], line["gpu"]) for line in lines if line["event"] == "trainer_ended"]
    assert started == ended == [("portrait", 1, "SIMULATED-0"), ("portrait", 2, "SIMULATED-0")]
    assert {line["gpu"] for line in lines if "job" in line and line["event"] != "queued"} == {"SIMULATED-0"}


async def test_the_brokers_password_is_never_logged(fleet: Fleet) -> None:
    """At the most talkative level: while it works, where the password is refused, and where nobody listens."""
    secret = urlsplit(fleet.url)
    working = await fleet.start("w1", arguments=VERBOSE)
    await fleet.submit("portrait")
    await fleet.events("portrait")
    program = ("-c", BY_ENVIRONMENT.format(url=with_password(fleet.url)))
    refused = await fleet.start("w2", online=False, program=program, arguments=VERBOSE)
    nobody = await fleet.start("w3", online=False, amqp_url=f"amqp://nobody:{PASSWORD}@127.0.0.1:9/", arguments=VERBOSE)
    for daemon in (refused, nobody):
        await daemon.until_logged("broker_unreachable", 2)
    for daemon in (working, refused, nobody):
        daemon.signal(signal.SIGTERM)
        await daemon.ended()

        text = daemon.log.read_text()
        assert PASSWORD not in text
        assert "amqp://" not in text
        assert f"{secret.username}:{secret.password}@" not in text
