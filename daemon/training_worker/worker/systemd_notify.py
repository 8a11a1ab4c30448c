"""What the service manager is told, by systemd's protocol sd_notify(3): a datagram to a socket that it names.

Without the variable NOTIFY_SOCKET nobody listens, and all of this does nothing.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

import msgspec

# How often what the worker does is looked at; told only if it has changed.
LOOK_INTERVAL = 1.0
# A manager reads at once, but while it reloads its own files; a lost READY=1 would cost the unit its start.
SEND_TIMEOUT = 2.0


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is: whether what it consists of runs, and what it does in a line for ``systemctl status``."""

    healthy: bool
    status: str


class Notifier:
    """Says how the daemon is, to whom the environment names."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of a socket that is in no file system.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self.watchdog = _watchdog(environ) if path else None
        """Within how many seconds the manager wants to hear of this process again and again; None: it does not."""

    @property
    def listened_to(self) -> bool:
        """Whether anybody wants to hear."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Started, or started anew."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """What is done now."""
        self._send(f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """About to be executed anew; `ready` ends that."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=starting anew")

    def stopping(self, status: str) -> None:
        """About to end. From now on the manager counts the unit's stop time."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Not hung."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A manager that is gone, or too busy to take it, is no reason for training to end.
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
    """Say that the worker is ready, then what it does and, while it is healthy, that it lives; for ever.

    This is a task of the event loop: a loop that hangs says nothing, and the manager's watchdog bites.
    """
    if not notifier.listened_to:
        return
    told = look().status
    notifier.ready(told)
    half = None if notifier.watchdog is None else notifier.watchdog / 2
    interval = LOOK_INTERVAL if half is None else min(LOOK_INTERVAL, half)
    pinged = float("-inf")
    while True:
        now, condition = time.monotonic(), look()
        if condition.status != told:
            told = condition.status
            notifier.status(told)
        # The next look would come too late.
        if half is not None and condition.healthy and now + interval - pinged > half:
            notifier.alive()
            pinged = now
        await asyncio.sleep(interval)
