"""Signals of the daemon to a run: to stop, by SIGTERM or by an expired lease, and its other control requests."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from ..common.protocol.exit_code import ExitCode
from ..common.protocol.requests import RequestFile
from ..common.protocol.stop_signals import SIGNALLED, StopSignals
from .progress_writer import ProgressWriter

LEASE_FILE = "lease"
REQUESTS_FILE = "requests.jsonl"
REQUESTS = {"checkpoint", "sample"}


class Control(StopSignals):
    """Asked at each safe point of a run whether it should stop, and at each step for requests.

    SIGTERM ends the program at once where no step would be lost. Upstream's code cannot be interrupted otherwise, and
    the next step's end may be far. ``step`` and ``saved_step`` are those taken, and those that a checkpoint holds.
    """

    def __init__(self, folder: Path, progress: ProgressWriter, clock: Callable[[], float] = time.time) -> None:
        super().__init__(folder / LEASE_FILE, _end_of_lease, clock)
        self.saved_step = 0
        self.clean_up: Callable[[], None] = lambda: None
        self._progress = progress
        self._requests = RequestFile(folder / REQUESTS_FILE, _request)

    def take_requests(self) -> set[str]:
        """Give what was asked for since the last call, each thing once; warn of lines that cannot be read."""
        return self._requests.read_new(self._progress.warn)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        super()._on_signal(number, frame)
        if self.step == self.saved_step and not self._progress.busy:
            self._progress.write("stopped", step=self.step, why=SIGNALLED)
            self.clean_up()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ExitCode.STOPPED)


def _request(line: bytes) -> str:
    try:
        name = json.loads(line)["request"]
        known = name in REQUESTS
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    if not known:
        raise ValueError(f"no such request: {name!r}")
    return str(name)


def _end_of_lease(data: bytes) -> float:
    try:
        lease = json.loads(data)
        end: float = sum((lease["deadline"], lease["maxIsolation"]))
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    return end
