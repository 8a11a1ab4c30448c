"""A child process in a session of its own: started, waited for and stopped as a group. It knows no jobs."""

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import msgspec

# How long the kernel may take to end a process that was killed: one that hangs in a driver call never ends.
KILL_TIMEOUT = 10.0


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended: its status, or the signal that killed it."""

    status: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            names = {number.value: number.name for number in signal.Signals}
            return f"killed by {names.get(self.signal, f'signal {self.signal}')}"
        return f"exit status {self.status}"


class Child:
    """A running child. Its output goes to files, so that it outlives its parent unharmed."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._on_end)

    @classmethod
    def start(cls, command: list[str], *, env: dict[str, str], stdout: Path, stderr: Path) -> "Child":
        """Start ``command`` with exactly this environment. Raises `OSError`."""
        with stdout.open("ab") as out, stderr.open("ab") as err:
            return cls(
                subprocess.Popen(  # noqa: S603 - the operator's own setting
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, start_new_session=True
                )
            )

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._popen.pid

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()

    async def wait(self) -> Exit:
        """Wait for the end of the process itself, then end what is left of its group."""
        await self._ended.wait()
        # Not reaped yet, so its id still names this group and nobody else's.
        self._signal(signal.SIGKILL)
        code = self._popen.wait()
        return Exit(signal=-code) if code < 0 else Exit(status=code)

    async def stop(self, grace: float) -> Exit:
        """Ask the group to end; kill it after ``grace`` seconds. Raises `TimeoutError` if even that does not help."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), grace)
        self._signal(signal.SIGKILL)
        return await asyncio.wait_for(self.wait(), KILL_TIMEOUT)

    def kill(self) -> None:
        """Kill the group, if it has not ended; wait for nothing."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
