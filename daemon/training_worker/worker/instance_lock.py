"""The lock on a state directory: two daemons must not manage the same runs."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training_worker.errors import SettingsError

LOCK_FILE = "lock"

# A child that was being started when the last daemon was killed holds the lock until it executes its program, seconds.
TIMEOUT = 2.0
POLL = 0.05


@contextmanager
def only_daemon(state_dir: Path) -> Iterator[None]:
    """Hold the lock as the only daemon of this directory. Raises `SettingsError` if there is another one."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"cannot use state_dir {state_dir}: {error.strerror}") from None
    try:
        _lock(file, state_dir)
        yield
    finally:
        os.close(file)


def _lock(file: int, state_dir: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            # Freed when the process ends, in whatever way; a trainer does not inherit it.
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SettingsError(f"cannot use state_dir {state_dir}: another daemon does") from None
        time.sleep(POLL)
