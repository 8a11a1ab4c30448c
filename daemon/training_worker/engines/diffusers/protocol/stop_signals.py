"""Signals of the daemon to a run: to stop, by SIGTERM or by an expired lease, and its other control requests."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from training_schemas.spec import LEASE_FILE, REQUESTS_FILE, RunLease
from training_worker.engines.common.protocol.stop_signals import StopSignals
from training_worker.engines.diffusers.protocol.requests import RequestReader


class Control(StopSignals):
    """Asked at each safe point of a run whether it should stop, and at each step for ``requests``."""

    def __init__(self, run_folder: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(run_folder / LEASE_FILE, _end_of_lease, clock)
        self.requests = RequestReader(run_folder / REQUESTS_FILE)


def _end_of_lease(data: bytes) -> float:
    lease = msgspec.json.decode(data, type=RunLease)
    return lease.deadline + lease.max_isolation
