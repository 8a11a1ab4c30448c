"""What ends a run early: a signal, or a lease that ran out."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from .failures import TrainingStopped

SIGNALLED = "signal"
ORPHANED = "orphan"

LEASE_INTERVAL = 1.0  # seconds between two looks at the lease


class StopSignals:
    """Asked at each safe point of a run whether it should stop.

    ``end_of_lease`` reads the lease's file: after which time (unix seconds) nobody owns the run; it raises `ValueError`
    where that is no lease.
    """

    def __init__(
        self, lease: Path, end_of_lease: Callable[[bytes], float], clock: Callable[[], float] = time.time
    ) -> None:
        self.step = 0
        """The optimizer steps taken, as a stop reports them; for an engine that counts them here."""
        self._lease_path = lease
        self._end_of_lease = end_of_lease
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
        """Return why the run should stop, or None; the lease is read at most once a second."""
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
            raise TrainingStopped(why, self.step)

    def _is_orphan(self, now: float) -> bool:
        try:
            return now > self._end_of_lease(self._lease_path.read_bytes())
        except (OSError, ValueError):
            return False  # no lease, no rule; and one that is half written will be whole at the next look

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True
