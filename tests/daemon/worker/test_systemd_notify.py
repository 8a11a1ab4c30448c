"""What the service manager receives, on a real socket."""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from training_worker.worker.systemd_notify import Condition, Notifier, keep_notifying


class Manager:
    """A service manager's ear."""

    def __init__(self, address: str) -> None:
        self.name = f"@{address[1:]}" if address.startswith("\0") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """What was sent since the last call, each datagram's lines together."""
        sent: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sent.append(self._socket.recv(4096).decode())
        return sent

    def close(self) -> None:
        """Receive no more."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """One that listens at a path."""
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def worker(*, healthy: bool = True, status: str = "connected") -> Condition:
    """How a worker is."""
    return Condition(healthy=healthy, status=status)


async def notify_for(seconds: float, notifier: Notifier, conditions: list[Condition]) -> None:
    """Send what the worker is: each condition for one look, the last one for the rest of the time."""

    def look() -> Condition:
        return conditions.pop(0) if len(conditions) > 1 else conditions[0]

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(keep_notifying(notifier, look), seconds)


def test_each_message_is_a_datagram_of_its_own(manager: Manager) -> None:
    """As sd_notify(3) has them; a status is one line whatever is in it."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    before = time.monotonic_ns() // 1000

    notifier.ready("not connected to the broker")
    notifier.status("cannot start:\n two lines")
    notifier.stopping("ending")
    notifier.alive()
    notifier.reloading()

    *others, reloading = manager.heard()
    assert others == [
        "READY=1\nSTATUS=not connected to the broker",
        "STATUS=cannot start: two lines",
        "STOPPING=1\nSTATUS=ending",
        "WATCHDOG=1",
    ]
    kind, when, _ = reloading.split("\n")
    assert kind == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_an_abstract_socket_hears_too() -> None:
    """Its name begins with a zero byte, written as @."""
    manager = Manager(f"\0training-worker-{secrets.token_hex(8)}")
    try:
        Notifier({"NOTIFY_SOCKET": manager.name}).alive()
        assert manager.heard() == ["WATCHDOG=1"]
    finally:
        manager.close()


async def test_without_a_manager_nothing_is_sent() -> None:
    """The daemon on a terminal has nobody to notify, and a task less."""
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})

    notifier.ready("")
    await asyncio.wait_for(keep_notifying(notifier, worker), 1)

    assert (notifier.listened_to, notifier.watchdog) == (False, None)


def test_a_manager_that_is_gone_disturbs_nobody(tmp_path: Path) -> None:
    """Training is worth more than being monitored."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("connected")


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_this_process_s(variables: dict[str, str], seconds: float | None) -> None:
    """A time that is meant for another process, or none, requires nothing."""
    assert Notifier({"NOTIFY_SOCKET": "@x"} | variables).watchdog == seconds


async def test_a_change_is_sent_once(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY first, whether there is a broker or not; without a watchdog no pings."""
    monkeypatch.setattr("training_worker.worker.systemd_notify.LOOK_INTERVAL", 0.02)
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})

    await notify_for(0.3, notifier, [worker(status="not connected"), worker(status="not connected"), worker()])

    assert manager.heard() == ["READY=1\nSTATUS=not connected", "STATUS=connected"]


async def test_a_healthy_worker_pings_in_time(manager: Manager) -> None:
    """At least twice in each of the manager's intervals."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000"})

    await notify_for(1.0, notifier, [worker()])

    ready, *pings = manager.heard()
    assert ready.startswith("READY=1")
    assert set(pings) == {"WATCHDOG=1"}
    assert 6 <= len(pings) <= 20


async def test_a_worker_that_is_not_healthy_is_silent(manager: Manager) -> None:
    """So that the manager restarts it."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "100000"})

    await notify_for(0.4, notifier, [worker(healthy=False)])

    assert manager.heard() == ["READY=1\nSTATUS=connected"]


async def test_a_loop_that_hangs_is_silent(manager: Manager) -> None:
    """The ping is the loop's own; no thread sends it on behalf of a dead one."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "100000"})
    task = asyncio.create_task(keep_notifying(notifier, worker))
    await asyncio.sleep(0.1)
    manager.heard()

    time.sleep(0.3)  # noqa: ASYNC251 - the loop hangs

    assert manager.heard() == []
    task.cancel()
