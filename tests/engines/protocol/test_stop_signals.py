"""When the trainer stops by itself."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from training_schemas.spec import RunLease
from training_worker.engines.common.protocol.stop_signals import ORPHANED, SIGNALLED
from training_worker.engines.diffusers.protocol.stop_signals import Control

pytestmark = pytest.mark.trainer


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write_lease(path: Path, deadline: float) -> None:
    """Write a lease which an owner may outlive by a minute."""
    path.write_bytes(msgspec.json.encode(RunLease(deadline=deadline, max_isolation=60)))


def test_without_a_lease_nobody_is_an_orphan(tmp_path: Path) -> None:
    """A run started by hand has no daemon."""
    assert Control(tmp_path).why_stop() is None


def test_a_lease_that_ran_out_is_forgiven_for_max_isolation(tmp_path: Path) -> None:
    """The daemon may be cut off from its broker for a while."""
    clock = Clock()
    write_lease(tmp_path / "lease", deadline=clock.now)
    control = Control(tmp_path, clock)

    clock.now += 60
    assert control.why_stop() is None
    clock.now += 1
    assert ORPHANED == control.why_stop()


def test_the_lease_is_read_once_a_second(tmp_path: Path) -> None:
    """Steps may be short, and the file on a network drive."""
    clock = Clock()
    control = Control(tmp_path, clock)
    control.why_stop()
    write_lease(tmp_path / "lease", deadline=0)

    clock.now += 0.9
    assert control.why_stop() is None
    clock.now += 0.1
    assert ORPHANED == control.why_stop()


@pytest.mark.parametrize("content", [b'{"deadl', b'{"\xff": 1}'])
def test_a_broken_lease_is_no_reason_to_stop(tmp_path: Path, content: bytes) -> None:
    """It may be half written; days of training are not thrown away for it."""
    (tmp_path / "lease").write_bytes(content)

    assert Control(tmp_path).why_stop() is None


def test_sigterm_asks_to_stop(tmp_path: Path) -> None:
    """Nothing happens at once: the run looks at its next safe point."""
    control = Control(tmp_path)
    previous = signal.getsignal(signal.SIGTERM)
    control.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)

    assert SIGNALLED == control.why_stop()
