"""What doctor makes of the broker's consumer timeout, known and not."""

import socket
from pathlib import Path

import pytest

from training_worker.doctor import consumer_timeout
from training_worker.doctor.findings import State
from training_worker.settings import Settings

PORT = 5672


@pytest.mark.parametrize(
    ("lease", "known", "state"),
    [
        (120, None, State.OK),
        (3600, None, State.WARNING),
        (120, 1800, State.OK),
        (120, 60, State.ERROR),
        (120, consumer_timeout.FOREVER, State.OK),
        (7200, consumer_timeout.FOREVER, State.OK),
    ],
)
def test_half_the_lease_must_be_shorter(lease: float, known: float | None, state: State) -> None:
    """Where it is not known, it is compared with what it is by default."""
    found = consumer_timeout.judge(Settings(lease=lease), known, "the broker")

    assert found.state is state
    assert (found.fix is None) is (state is State.OK)
    assert ("application:get_env(rabbit, consumer_timeout)." in found.found) is (known is None)


def test_a_limit_that_is_too_short_is_reported_with_one_that_is_not() -> None:
    """Twice as long as a delivery is held, at once and for good."""
    found = consumer_timeout.judge(Settings(lease=120), 10, "the broker")

    assert "the broker allows 10 s" in found.found
    assert str(found.fix).startswith("rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, 120000).'  #")
    assert "consumer_timeout = 120000 in rabbitmq.conf" in str(found.fix)


@pytest.mark.parametrize(
    ("output", "limit"),
    [
        ("{{ok,1800000},[25672,5672]}\n", 1800.0),
        ("{{ok,10000},[5672,\n 15672]}\n", 10.0),
        ("{undefined,[5672]}\n", consumer_timeout.FOREVER),
        ("{{ok,undefined},[5672]}\n", consumer_timeout.FOREVER),
        ("{{ok,1800000},[5673]}\n", None),
        ("Only root or rabbitmq should run rabbitmqctl\n", None),
    ],
)
def test_a_node_is_believed_that_listens_to_the_brokers_port(output: str, limit: float | None) -> None:
    """Another on the same host may be any other."""
    assert consumer_timeout.read_answer(output, PORT) == limit


def test_a_broker_elsewhere_is_not_queried_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one whose address is nobody's."""
    program = tmp_path / "rabbitmqctl"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho '{{{{ok,5000}},[{PORT}]}}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    assert consumer_timeout.of_node("192.0.2.1", PORT) is None
    assert consumer_timeout.of_node("no-such-host.invalid", PORT) is None
    assert not (tmp_path / "asked").exists()
    assert consumer_timeout.of_node("localhost", PORT) == 5.0
    assert consumer_timeout.of_node(socket.gethostbyname("localhost"), PORT) == 5.0


def test_a_program_that_hangs_or_fails_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not waited for."""
    program = tmp_path / "rabbitmqctl"
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(consumer_timeout, "LIMIT", 0.5)
    for text in ("exec sleep 60", "exit 69"):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

        assert consumer_timeout.of_node("127.0.0.1", PORT) is None
