"""The leader's helpers: the same program once more for each further GPU of a job."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from training_schemas.progress import FailedRecord, FailureReason, decode_record
from training_schemas.spec import PROGRESS_FILE
from training_worker.engines.common.protocol.exit_code import ExitCode
from training_worker.engines.common.protocol.failures import Fault, TrainingFailure

# The rank of the process that the daemon started.
LEADER = 0

PROGRAM = "training_worker.engines.diffusers"

# Seconds that a helper may take to end once its input is closed.
END_TIMEOUT = 10.0

# Seconds that a failure of this process waits for one of a helper, which may be its cause.
VERDICT_TIMEOUT = 5.0

# A helper stops where the leader gives up a step.
ENDED_WELL = (ExitCode.DONE, ExitCode.STOPPED)

# Called with a helper's rank and its exit status.
OnFailure = Callable[[int, int], None]


class Helpers:
    """Helpers that run while this is open; one that ends badly before is reported to ``on_failure``, in a thread."""

    def __init__(self, folder: Path, size: int, on_failure: OnFailure) -> None:
        self._folder = folder
        self._size = size
        self._on_failure = on_failure
        self._over = threading.Event()
        self._failed = threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        # SIGTERM goes to the whole group of processes, and is the leader's: helpers have it blocked from their start.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            for rank in range(LEADER + 1, self._size):
                self._start(rank)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def _start(self, rank: int) -> None:
        command = [sys.executable, "-m", PROGRAM, str(self._folder), "--rank", str(rank)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - this very program
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if status not in ENDED_WELL and not self._over.is_set():
            self._on_failure(rank, status)
            self._failed.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, RuntimeError):
            # torch's error for a process that it cannot reach. Why it is gone is for its watcher to report.
            self._failed.wait(VERDICT_TIMEOUT)
        self._over.set()
        for process in self._processes:
            assert process.stdin is not None  # noqa: S101 - a pipe
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def end_with_leader() -> None:
    """End this helper as soon as its leader has ended, or wants no more of it: its standard input closes then."""

    def wait() -> None:
        # Not by the interpreter's own reader, whose lock would be in the way of an end on the helper's own account.
        os.read(sys.stdin.fileno(), 1)
        os._exit(ExitCode.STOPPED)

    threading.Thread(target=wait, daemon=True).start()


def progress_file(rank: int) -> str:
    """The name of a process's records in the run folder; the daemon reads the leader's."""
    return PROGRESS_FILE if rank == LEADER else f"progress-{rank}.jsonl"


def failure_of_helper(folder: Path, rank: int, status: int) -> TrainingFailure:
    """Why a helper ended: the failure in its last record, or how its process ended."""
    try:
        last = decode_record((folder / progress_file(rank)).read_bytes().splitlines()[-1])
    except (OSError, IndexError, msgspec.MsgspecError):
        last = None
    if isinstance(last, FailedRecord):
        faults = [Fault(path=fault.path, reason=fault.reason) for fault in last.faults]
        return TrainingFailure(last.reason, f"GPU {rank + 1}: {last.message}", faults)
    return TrainingFailure(FailureReason.TRAINER_CRASHED, f"the process of GPU {rank + 1} ended with status {status}")
