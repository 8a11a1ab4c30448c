"""The meter: how fast a run goes, how long it takes yet, and what it has used."""

from collections import deque
from collections.abc import Callable

from training_presets.prices import cost_usd
from training_schemas.usage import Usage

# The rate is that of the last steps: the first ones are slower, and samples come in between.
WINDOW = 20


class Meter:
    """Counts from its making, when the trainer's process starts: from then on nobody else can use the card."""

    def __init__(self, usd_per_hour: float | None, *, clock: Callable[[], float]) -> None:
        self._usd_per_hour = usd_per_hour
        self._clock = clock
        self._started = clock()
        self._stopped: float | None = None
        self._steps: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def stop(self) -> None:
        """The trainer's process has ended."""
        self._stopped = self._clock()

    def usage(self) -> Usage:
        """GPU-seconds and dollars up to now, or up to the end."""
        end = self._clock() if self._stopped is None else self._stopped
        seconds = end - self._started
        return Usage(gpu_seconds=seconds, cost_usd=cost_usd(seconds, self._usd_per_hour))

    def step(self, number: int, time: float) -> None:
        """An optimizer step ended at ``time`` (unix seconds, the trainer's clock)."""
        self._steps.append((number, time))

    def steps_per_minute(self) -> float | None:
        """The rate of the last steps; None before the second one."""
        if not self._steps:
            return None
        (first, begin), (last, end) = self._steps[0], self._steps[-1]
        return 60 * (last - first) / (end - begin) if end > begin and last > first else None

    def seconds_left(self, remaining: int) -> float | None:
        """How long the remaining steps take at this rate."""
        rate = self.steps_per_minute()
        return None if rate is None else 60 * remaining / rate
