"""docs/operations.md as an operator does it, line by line."""

import re
from pathlib import Path

import pytest
from tests.support.nspawn import HOSTNAME
from tests.support.unit_host import LONG, PROGRAM, UNIT, Host

from training_schemas.events import JobProgress

pytestmark = [pytest.mark.broker, pytest.mark.systemd, pytest.mark.timeout(900)]

DROP_IN = "/etc/systemd/system/training-worker.service.d/override.conf"
PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def block_below(heading: str, language: str) -> str:
    """The first block of a language below a heading."""
    text = PAGE.read_text().partition(f"\n### {heading}\n")[2]
    return text.partition(f"```{language}\n")[2].partition("```")[0]


def lines_below(heading: str) -> list[str]:
    """The commands of the first block below a heading, without those that fetch packages."""
    lines = block_below(heading, "sh").splitlines()
    return [line for line in lines if not re.search(r"pip install|-m venv", line)]


async def test_from_install_to_undo(host: Host) -> None:
    """Each line of the page, in its order; the settings are changed where it says so."""
    machine = host.machine
    machine.run(PROGRAM, "install", "--undo")
    machine.run("rm", "-rf", "/etc/training-worker")
    try:
        for line in lines_below("Install"):
            if line.startswith("systemctl enable"):
                assert machine.run("stat", "--format=%a %U", "/etc/training-worker/amqp-url").split() == ["600", "root"]
                host.configure()
            machine.run("sh", "-c", line)
        await host.until("StatusText", lambda text: text == "connected; no job on 1 GPU(s)")

        trainer = await host.train("portrait", LONG // 2)
        for line in lines_below("Upgrade and change of settings, with jobs running"):
            machine.run("sh", "-c", line)
        assert machine.trainers() == [trainer]
        assert host.shown("ActiveState") == "active"

        await host.until("StatusText", lambda text: text.startswith("connected; training"))
        client = [f"TRAINING_AMQP_URL={host.fleet.url}", f"TRAINING_PREFIX={host.fleet.names.prefix}"]
        machine.run("env", *client, PROGRAM, "drain", HOSTNAME)
        await host.until("StatusText", lambda text: text.startswith("connected, draining; training portrait"))
        assert (await host.completed("portrait")).attempt == 1
        await host.until("ActiveState", lambda state: state == "inactive")
        assert (host.shown("Result"), host.shown("NRestarts")) == ("success", "0")

        machine.run("systemctl", "start", "training-worker")
        await host.train("second", LONG)
        machine.run("systemctl", "stop", "training-worker")
        assert machine.trainers() == []
        for line in lines_below("Take it off again"):
            machine.run("sh", "-c", line)
        assert machine.run("find", "/etc", "-name", "training-worker*").split() == ["/etc/training-worker"]
        assert machine.run("ls", "/etc/training-worker").split() == ["amqp-url", "worker.toml"]
        assert machine.run("id", "training-worker")
    finally:
        machine.run("systemctl", "disable", "--now", UNIT, status=None)
        # What follows a test asks about the unit.
        machine.run(PROGRAM, "install")
    host.start()
    await host.fleet.until("second", JobProgress, count=5)
    await host.fleet.api.cancel("second")


async def test_a_key_for_tls_is_a_credential(host: Host) -> None:
    """By the drop-in of the page; and the unit can be reloaded, whose check does not see credentials."""
    machine = host.machine
    host.configure(amqp_ca_file="/etc/training-worker/ca.pem", amqp_cert_file="/etc/training-worker/worker.pem")
    machine.write("/etc/training-worker/amqp-url", "amqps://worker:password@127.0.0.1:9/\n", 0o600)
    for name, mode in (("ca.pem", 0o644), ("worker.pem", 0o644), ("worker.key", 0o600)):
        machine.write(f"/etc/training-worker/{name}", "", mode)
    machine.write(DROP_IN, block_below("TLS", "ini"))
    machine.run("systemctl", "daemon-reload")
    try:
        host.start()
        daemon = host.shown("MainPID")
        machine.run("systemctl", "reload", UNIT)

        assert (host.shown("ActiveState"), host.shown("MainPID")) == ("active", daemon)
        assert host.shown("StatusText") == "not connected to the broker; no job on 1 GPU(s)"
        key = "/run/credentials/training-worker.service/worker.key"
        assert machine.run("stat", "--format=%U %a", key).split() == ["training-worker", "400"]
    finally:
        machine.run("rm", DROP_IN)
        machine.run("systemctl", "daemon-reload")
