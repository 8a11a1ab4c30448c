"""The usage of an attempt: how fast a run goes, how long it still takes, and what it has used."""

from collections import deque
from collections.abc import Callable

from training_presets.cards import cost_usd
from training_schemas.usage import Usage

# The rate is that of the last steps: the first ones are slower, and samples come in between.
WINDOW = 20


class UsageMeter:
    """Counts from ``started``, when the trainer's process began: from then on nobody else can use the GPU.

    All times are unix seconds, so that a daemon that re-attaches to the trainer continues the count. ``usd_per_hour``
    is that of all ``gpu_count`` GPUs together.
    """

    def __init__(
        self, usd_per_hour: float | None, *, started: float, clock: Callable[[], float], gpu_count: int = 1
    ) -> None:
        self._usd_per_hour = usd_per_hour
        self._gpu_count = gpu_count
        self._clock = clock
        self._started = started
        self._stopped: float | None = None
        self._kept = started
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self._steps: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def stop(self, time: float | None = None) -> None:
        """Note that the trainer's process has ended: now, or at a time in the past."""
        self._stopped = self._clock() if time is None else time

    def kept(self, time: float) -> None:
        """Note that all that was done up to ``time`` is in a checkpoint."""
        self._kept = max(self._kept, time)

    def usage(self) -> Usage:
        """Return GPU-seconds and dollars up to now, or up to the end."""
        return self._usage(wasted=0.0)

    def usage_if_lost(self) -> Usage:
        """Return the same, if what came after the last checkpoint is lost."""
        return self._usage(wasted=max(0.0, self._end() - self._kept))

    def _usage(self, wasted: float) -> Usage:
        seconds = max(0.0, self._end() - self._started)
        return Usage(
            gpu_seconds=seconds * self._gpu_count,
            cost_usd=cost_usd(seconds, self._usd_per_hour),
            wasted_gpu_seconds=min(wasted, seconds) * self._gpu_count,
        )

    def _end(self) -> float:
        return self._clock() if self._stopped is None else self._stopped

    def seconds_until(self, budget_usd: float) -> float | None:
        """Return how long until the run has cost this much; None if its GPU has no price."""
        if not self._usd_per_hour:
            return None
        return self._started + budget_usd / self._usd_per_hour * 3600 - self._clock()

    def step(self, number: int, time: float) -> None:
        """Note that an optimizer step ended at ``time``, by the trainer's clock."""
        self._steps.append((number, time))
        self._first = self._first or (number, time)
        self._last = (number, time)

    def steps_per_minute(self) -> float | None:
        """Return the rate of the last steps; None before the second one."""
        if not self._steps:
            return None
        (first, begin), (last, end) = self._steps[0], self._steps[-1]
        return 60 * (last - first) / (end - begin) if end > begin and last > first else None

    def seconds_per_step(self) -> float | None:
        """Return the mean over all of this attempt's steps; None before the second one."""
        if self._first is None or self._last is None:
            return None
        (first, begin), (last, end) = self._first, self._last
        return (end - begin) / (last - first) if end > begin and last > first else None

    def seconds_left(self, remaining: int) -> float | None:
        """Return how long the remaining steps take at this rate."""
        rate = self.steps_per_minute()
        return None if rate is None else 60 * remaining / rate
