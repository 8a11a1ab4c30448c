"""Notifications to the service manager, by systemd's protocol sd_notify(3): a datagram to a socket that it names.

Without the variable NOTIFY_SOCKET there is no such manager, and all of this does nothing.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

import msgspec

# How often the worker's condition is read; it is sent only if it has changed.
LOOK_INTERVAL = 1.0
# A manager reads at once, except while it reloads its own files; a lost READY=1 would fail the unit's start.
SEND_TIMEOUT = 2.0


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """The condition of a worker: whether its parts run, and its activity in one line for ``systemctl status``."""

    healthy: bool
    status: str


class Notifier:
    """Notifies the service manager that the environment names."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of a socket that is in no file system.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self.watchdog = _watchdog(environ) if path else None
        """The seconds within which the manager expects this process's keep-alives; None if it expects none."""

    @property
    def listened_to(self) -> bool:
        """Whether there is a manager to notify."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Notify that the daemon has started, or restarted."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Notify of the current activity."""
        self._send(f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """Notify that a restart in place begins; `ready` ends that."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=restarting")

    def stopping(self, status: str) -> None:
        """Notify that the end begins. From now on the manager counts the unit's stop time."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Not hung."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A manager that is gone, or too busy to receive it, is no reason for training to end.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as outgoing,
        ):
            outgoing.settimeout(SEND_TIMEOUT)
            outgoing.connect(self._address)
            outgoing.sendall("\n".join(lines).encode())


def _watchdog(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None


def _line(text: str) -> str:
    return " ".join(text.split())


async def keep_notifying(notifier: Notifier, look: Callable[[], Condition]) -> None:
    """Notify that the worker is ready, then of its activity and, while it is healthy, keep-alives; for ever.

    This is a task of the event loop: a loop that hangs sends nothing, and the manager's watchdog ends the process.
    """
    if not notifier.listened_to:
        return
    sent = look().status
    notifier.ready(sent)
    half = None if notifier.watchdog is None else notifier.watchdog / 2
    interval = LOOK_INTERVAL if half is None else min(LOOK_INTERVAL, half)
    pinged = float("-inf")
    while True:
        now, condition = time.monotonic(), look()
        if condition.status != sent:
            sent = condition.status
            notifier.status(sent)
        # The next look would come too late.
        if half is not None and condition.healthy and now + interval - pinged > half:
            notifier.alive()
            pinged = now
        await asyncio.sleep(interval)
