"""The question to an engine's interpreter what its environment has. It always ends, whatever the interpreter does."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any

import msgspec

from training_worker.runs.child_process import KILL_TIMEOUT, Exit
from training_worker.runs.environment import bare_environment

PROBE = Path(__file__).with_name("probe_script.py")
# Seconds. An import of torch from a cold disk takes tens of seconds.
LIMIT = 120.0
LAST_LINES = 10
LAST_BYTES = 16_384
MOST_BYTES = 1_048_576


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The question: versions of distributions, the commit of one, and modules to import, torch before them."""

    packages: tuple[str, ...] = ()
    source: str | None = None
    modules: tuple[str, ...] = ()


class SeenGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that torch sees."""

    name: str
    capability: tuple[int, int]


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """The build of torch: for which CUDA, if any, and which architectures; or why it cannot be imported."""

    version: str = ""
    cuda: str | None = None
    architectures: list[str] = []
    devices: list[SeenGpu] = []
    error: str | None = None


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a module's import: how many seconds it took, or why it failed."""

    seconds: float = 0.0
    error: str | None = None


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """The interpreter's answers; None for what it did not answer. In ``packages``, None is a package not installed.

    ``folder`` is where the packages are: one for each environment.
    """

    python: str | None = None
    folder: str | None = None
    packages: dict[str, str | None] | None = None
    commit: str | None = None
    torch: Torch | None = None
    modules: dict[str, Imported] | None = None


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """An interpreter's answers, why there are no more of them, and the last lines of its other output."""

    answers: Answers
    fault: str | None
    output: str


def probe(interpreter: str, wanted: Wanted, limit: float = LIMIT) -> Probed:
    """Run the probe; after ``limit`` seconds what still runs is killed. Raises `OSError` if it cannot be started."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(  # noqa: S603 - the operator's own setting
            [interpreter, str(PROBE), msgspec.json.encode(wanted).decode()],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=bare_environment(),
            start_new_session=True,
        )
        fault = _end(process, limit)
        answer, output = _start(out), _last_lines(err)
    try:
        answers = _read(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        printed = answer.decode(errors="replace").splitlines()[-LAST_LINES:]
        return Probed(
            answers=Answers(), fault=fault or "prints no answer", output="\n".join([*printed, output]).strip()
        )
    return Probed(answers=answers, fault=fault, output=output)


def _end(process: "subprocess.Popen[bytes]", limit: float) -> str | None:
    """Wait for the process, then kill the rest of its group; return why it did not end well, if it did not."""
    pidfd = os.pidfd_open(process.pid)
    in_time = False
    try:
        in_time = bool(select.select([pidfd], [], [], limit)[0])
    finally:
        os.close(pidfd)
        # The process is not reaped yet, so its id still names this group and no other.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # A process that hangs in a driver call never ends, and is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_TIMEOUT)
    if not in_time:
        return f"no end after {limit:g} s"
    return str(Exit.of(process.returncode)) if process.returncode else None


def _start(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(MOST_BYTES)


def _last_lines(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LAST_BYTES))
    return "\n".join(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])


def _read(answer: bytes) -> Answers:
    parts: dict[str, Any] = {}
    for line in answer.splitlines():
        parts |= msgspec.json.decode(line, type=dict[str, Any])
    return msgspec.convert(parts, Answers)
