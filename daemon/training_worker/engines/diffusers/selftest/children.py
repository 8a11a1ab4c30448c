"""Children that try kernels: they are started, read, and ended when they write nothing for too long."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import msgspec

# Seconds. An import of torch from a cold disk takes tens of them.
START_LIMIT = 180.0
# Of each trial. A right kernel takes a few seconds, the plans of cuDNN included.
SILENCE_LIMIT = 45.0
# How long the kernel of the system may take to end a process that was killed.
KILL_LIMIT = 5.0

# A child that has reported all may take a while to release the GPU.
END_GRACE = 10.0

LAST_BYTES = 4096
MOST_REASON = 300


class Line(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a child reports in one line; see ``Reporter`` in engines/common."""

    ready: dict[str, Any] | None = None
    missing: str | None = None
    trial: str | None = None
    result: dict[str, Any] | None = None
    rate: dict[str, Any] | None = None
    versions: dict[str, str] | None = None


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a child ended: in time or not, its status as `subprocess` gives it, and its last output on standard error."""

    hung: bool
    status: int | None
    last_words: str

    @property
    def reason(self) -> str:
        """Describe the end for people."""
        if self.hung:
            return "reported nothing for too long"
        status = self.status or 0
        how = f"killed by {_signal_name(-status)}" if status < 0 else f"exit status {status}"
        return f"{how}: {self.last_words}"[:MOST_REASON] if self.last_words else how


class Child:
    """A child that runs; iterate over it for its lines, after which ``end`` is how it ended."""

    def __init__(self, command: Sequence[str], silence: float = SILENCE_LIMIT) -> None:
        self._command = list(command)
        self._silence = silence
        self.end = End(hung=False, status=None, last_words="")

    def __iter__(self) -> Iterator[Line]:
        """Run it to its end. Raises `OSError` if it cannot be started."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(  # noqa: S603 - ourselves, or the engine's interpreter in the settings
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
            hung = True
            try:
                yield from self._listen(process)
                hung = False
            except TimeoutError:
                pass
            finally:
                status = _kill(process, END_GRACE if not hung else 0)
                self.end = End(hung=hung, status=status, last_words=_last_words(errors))

    def _listen(self, process: "subprocess.Popen[bytes]") -> Iterator[Line]:
        """Its lines until it has ended or closed its output. Raises `TimeoutError` when it writes nothing."""
        assert process.stdout is not None  # noqa: S101 - a pipe
        rest, limit = b"", max(START_LIMIT, self._silence)
        while chunk := _read(process, process.stdout, limit):
            *lines, rest = (rest + chunk).split(b"\n")
            for text in lines:
                with contextlib.suppress(msgspec.MsgspecError):
                    line = msgspec.json.decode(text, type=Line)
                    limit = self._silence
                    yield line


def _read(process: "subprocess.Popen[bytes]", pipe: IO[bytes], limit: float) -> bytes:
    """What comes next; nothing at the end, which a grandchild that holds the pipe does not delay."""
    pidfd = os.pidfd_open(process.pid)
    try:
        readable, _, _ = select.select([pipe.fileno(), pidfd], [], [], limit)
    finally:
        os.close(pidfd)
    if not readable:
        raise TimeoutError
    if pipe.fileno() not in readable and not select.select([pipe], [], [], 0)[0]:
        return b""
    return os.read(pipe.fileno(), 65536)


def _kill(process: "subprocess.Popen[bytes]", grace: float) -> int | None:
    """End what is left of it and of its group; its status, or None of one that the system cannot end."""
    pidfd = os.pidfd_open(process.pid)
    try:
        select.select([pidfd], [], [], grace)
    finally:
        os.close(pidfd)
    # It is not reaped yet, so its id still names this group and nobody else's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    try:
        return process.wait(KILL_LIMIT)
    except subprocess.TimeoutExpired:
        return None


def _last_words(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LAST_BYTES))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _signal_name(number: int) -> str:
    names = {one.value: one.name for one in signal.Signals}
    return names.get(number, f"signal {number}")
