"""What the daemon tells a run: to stop, by a signal or by a lease that ran out, and what else it asks for."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec

from training_schemas.spec import LEASE_FILE, REQUESTS_FILE, RunLease
from training_worker.engines.common.protocol.failures import TrainingStopped
from training_worker.engines.diffusers.protocol.requests import RequestReader

SIGNALLED = "signal"
ORPHANED = "orphan"

LEASE_INTERVAL = 1.0  # seconds between two looks at the lease


class Control:
    """Asked at each safe point of a run whether it should stop, and at each step for ``requests``."""

    def __init__(self, run_folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.requests = RequestReader(run_folder / REQUESTS_FILE)
        self._lease_path = run_folder / LEASE_FILE
        self._clock = clock
        self._signalled = False
        self._orphaned = False
        self._next_look = 0.0

    def listen(self) -> None:
        """From now on SIGTERM asks the run to stop at its next safe point."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def stop_listening(self) -> None:
        """From now on SIGTERM is ignored, also while the interpreter ends, which would give it its default back."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def why_stop(self) -> str | None:
        """Say why the run should stop, or None; reads the lease at most once a second."""
        if self._signalled:
            return SIGNALLED
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + LEASE_INTERVAL
            self._orphaned = self._is_orphan(now)
        return ORPHANED if self._orphaned else None

    def check(self) -> None:
        """Raise `TrainingStopped` where stopping needs no checkpoint."""
        if why := self.why_stop():
            raise TrainingStopped(why)

    def _is_orphan(self, now: float) -> bool:
        try:
            lease = msgspec.json.decode(self._lease_path.read_bytes(), type=RunLease)
        except (OSError, ValueError):
            return False  # no lease, no rule; and one that is half written will be whole at the next look
        return now > lease.deadline + lease.max_isolation

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True
