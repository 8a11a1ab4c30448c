"""The daemon's health, by its observations: whether it is alive, and whether it is ready; asked from other threads."""

import time
from collections.abc import Callable

from training_schemas.events import Taking
from training_worker.observations import AdmissionChanged, BrokerChanged, LoopTurned, Observation

# The event loop reports each second. A machine under load may be late; one that hangs stays silent.
LONGEST_SILENCE = 15.0


class Liveness:
    """The reasons why the daemon is dead or not ready; none, if all is well."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turned: float | None = None
        self._connected = False
        self._draining = False

    def observe(self, record: Observation) -> None:
        """Apply an observation."""
        match record:
            case LoopTurned():
                self._turned = self._clock()
            case BrokerChanged():
                self._connected = record.connected
            case AdmissionChanged():
                self._draining = record.taking is Taking.DRAINING
            case _:
                pass

    def why_dead(self) -> list[str]:
        """Return why the daemon should be restarted. Before its event loop has begun it counts as alive."""
        silent = 0.0 if self._turned is None else self._clock() - self._turned
        return [f"the event loop has not turned for {silent:.0f} s"] if silent > LONGEST_SILENCE else []

    def why_not_ready(self) -> list[str]:
        """Return why no new job can be consumed. A paused daemon is ready: it only waits for a command."""
        reasons = self.why_dead()
        if self._turned is None:
            reasons.append("starting")
        if not self._connected:
            reasons.append("not connected to the broker")
        if self._draining:
            reasons.append("draining")
        return reasons
