"""A child process in a session of its own: started or found again, waited for and stopped as a group.

It knows no jobs.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec

from training_worker.asyncio_tools import first_of
from training_worker.runs.process_identity import RECORD_SELF, ProcessIdentity

# How long the kernel may take to end a process that was killed: one that hangs in a driver call never ends.
KILL_TIMEOUT = 10.0


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """The exit of a process: its status, or the signal that killed it; neither, if it was not our child."""

    status: int | None = None
    signal: int | None = None

    @classmethod
    def of(cls, code: int) -> "Exit":
        """Return the exit of a return code as `subprocess` gives it."""
        return cls(signal=-code) if code < 0 else cls(status=code)

    def __str__(self) -> str:
        if self.signal is not None:
            names = {number.value: number.name for number in signal.Signals}
            return f"killed by {names.get(self.signal, f'signal {self.signal}')}"
        return "exit status unknown" if self.status is None else f"exit status {self.status}"


UNKNOWN = Exit()


class ChildProcess:
    """A running child. Its output goes to files, so that it outlives its parent unharmed."""

    def __init__(self, pid: int, pidfd: int, reap: Callable[[], Exit]) -> None:
        self.pid = pid
        """The process id, which is also that of its group."""
        self._pidfd = pidfd
        self._reap = reap
        self._exit: Exit | None = None
        self.ended = asyncio.Event()
        """Set when the process itself has ended."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_end)

    @classmethod
    def start(  # noqa: PLR0913 - a process has these, each by its name
        cls,
        command: list[str],
        *,
        env: dict[str, str],
        stdout: Path,
        stderr: Path,
        identity: Path,
        stdin: int = subprocess.DEVNULL,
    ) -> "ChildProcess":
        """Start ``command`` with exactly this environment and its own mark; it first writes its identity.

        Raises `OSError`.
        """
        if shutil.which(command[0], path=env.get("PATH")) is None:
            raise FileNotFoundError(f"no such program: {command[0]}")
        with stdout.open("ab") as out, stderr.open("ab") as err:
            popen = subprocess.Popen(  # noqa: S603 - the operator's own setting
                ["/bin/sh", "-c", RECORD_SELF, "sh", identity, *command],
                stdin=stdin,
                stdout=out,
                stderr=err,
                env=env,
                start_new_session=True,
            )
        return cls(popen.pid, os.pidfd_open(popen.pid), lambda: Exit.of(popen.wait()))

    @classmethod
    def find(cls, identity: ProcessIdentity) -> "ChildProcess | None":
        """Return the process that an earlier daemon started, if it still runs."""
        pidfd = identity.open()
        return None if pidfd is None else cls(identity.pid, pidfd, lambda: reap(identity.pid))

    def _on_end(self) -> None:
        self._stop_watching()
        self.ended.set()

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def wait(self) -> Exit:
        """Wait for the end of the process itself, then kill what is left of its group."""
        await self.ended.wait()
        if self._exit is None:
            # Our own child is not reaped yet, so its id still names this group and no other.
            self._signal(signal.SIGKILL)
            self._exit = self._reap()
        return self._exit

    async def stop(self, grace: float, hurry: asyncio.Event | None = None) -> Exit:
        """Ask the group to end; kill it after ``grace`` seconds, or as soon as ``hurry`` is set.

        Raises `TimeoutError` if even that does not help.
        """
        self._signal(signal.SIGTERM)
        await first_of(self.ended, hurry or asyncio.Event(), timeout=grace)
        if not self.ended.is_set():
            self._signal(signal.SIGKILL)
        return await asyncio.wait_for(self.wait(), KILL_TIMEOUT)

    def leave(self) -> None:
        """Let the process continue; the next daemon finds it."""
        self._stop_watching()

    def _signal(self, number: signal.Signals) -> None:
        if self._exit is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def reap(pid: int) -> Exit:
    """Return how a process ended that an earlier program in this very process started, or another process."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return UNKNOWN
    return Exit.of(os.waitstatus_to_exitcode(status))
