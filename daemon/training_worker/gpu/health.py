"""Health of a GPU: pure rules that decide by the driver's readings whether it gets jobs."""

from collections.abc import Iterable

from training_worker.gpu.xid import CRITICAL_XIDS
from training_worker.observations import Reading

# After so many readings a GPU whose memory others hold gets jobs that need less of it.
MOST_CROWDED = 40


class GpuHealth:
    """The health of one GPU, reading after reading: whether it is quarantined.

    Args:
        hottest: degrees Celsius; a GPU that is hotter is unhealthy.
        probes: how many readings in a row must be healthy before a quarantined GPU recovers.
    """

    def __init__(self, hottest: float, probes: int) -> None:
        self._hottest = hottest
        self._probes = probes
        self._ecc: int | None = None
        self._lasting: str | None = None
        self._good = 0
        self._wanted_mib = 0
        self._crowded = 0
        self.quarantined: str | None = None
        """The reason why the GPU gets no jobs; None if it gets some."""

    def want(self, memory_mib: int) -> None:
        """Count less free memory than this as a fault from the next reading on, for at most `MOST_CROWDED` readings.

        A job needs it that the GPU is large enough for.
        """
        self._wanted_mib, self._crowded = memory_mib, MOST_CROWDED

    def update(self, reading: Reading, xids: Iterable[int] = ()) -> bool:
        """Apply a reading, and the Xids that came before it. True if the GPU was quarantined, or recovered."""
        reason = self._fault(reading, xids)
        before = self.quarantined
        if reason is not None:
            self._good = 0
            # The first reason stays: what follows is often its consequence.
            self.quarantined = before or reason
        elif before is not None:
            self._good += 1
            if self._good >= self._probes:
                self.quarantined = None
                self._wanted_mib = 0
        return (before is None) is not (self.quarantined is None)

    def _fault(self, reading: Reading, xids: Iterable[int]) -> str | None:
        critical = [xid for xid in xids if xid in CRITICAL_XIDS]
        critical_xid = f"Xid {critical[0]}: {CRITICAL_XIDS[critical[0]].meaning}" if critical else None
        if any(CRITICAL_XIDS[xid].lasting for xid in critical):
            self._lasting = self._lasting or critical_xid
        return self._lasting or critical_xid or self._read(reading)

    def _read(self, reading: Reading) -> str | None:
        errors = self._new_errors(reading.ecc_uncorrected)
        if reading.lost:
            return "lost: the driver does not show it any more"
        if reading.fault is not None:
            return f"the driver cannot read it: {reading.fault}"
        if errors:
            return f"uncorrected memory errors (ECC): {errors}"
        if reading.temperature_c is not None and reading.temperature_c > self._hottest:
            return f"too hot: {reading.temperature_c} C, over {self._hottest:g} C"
        if reading.free_mib is not None and reading.free_mib < self._wanted_mib and self._crowded > 0:
            self._crowded -= 1
            return f"too little free memory: {reading.free_mib} MiB, where a job needs {self._wanted_mib} at least"
        return None

    def _new_errors(self, count: int | None) -> int:
        """Return the errors since the first reading, or since the GPU was reset, which resets its counter."""
        if count is None:
            return 0
        self._ecc = count if self._ecc is None else min(self._ecc, count)
        return count - self._ecc
