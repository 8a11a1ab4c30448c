"""The host's caches, as trainers keep them: which of their entries no running trainer uses.

A trainer has a folder below ``runs`` while it has the cache open: it holds a lock there, and each entry that it has
used is linked there. An entry's time is that of its last use.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from training_worker.storage.disk_usage import folders_in

ENTRIES = "entries"
RUNS = "runs"
LOCK = "lock"


class Entry:
    """One file of the cache, as it was when it was read."""

    def __init__(self, path: Path, status: os.stat_result) -> None:
        self.path = path
        self.used_at = status.st_mtime
        self.size = status.st_size
        self.is_used = status.st_nlink > 1

    def remove(self) -> None:
        """Remove the entry, which can be made again. An entry that cannot be removed is left."""
        with suppress(OSError):
            self.path.unlink()


class Caches:
    """The caches in ``folder``. Trainers may read, write and evict at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def unused(self) -> list[Entry]:
        """Return the entries that no open run holds, least recently used first. Entries of dead runs are released."""
        self._let_go()
        return [entry for entry in self._entries() if not entry.is_used]

    def clean(self, before: float, limit_bytes: int) -> list[Path]:
        """Remove what nobody has used since ``before`` (unix seconds), and what is beyond the limit; return the paths.

        What an open run holds stays.
        """
        self._let_go()
        entries = self._entries()
        excess = sum(entry.size for entry in entries) - limit_bytes
        removed = []
        for entry in entries:
            if not entry.is_used and (excess > 0 or entry.used_at < before):
                entry.remove()
                excess -= entry.size
                removed.append(entry.path)
        return removed

    def _entries(self) -> list[Entry]:
        return sorted(self._found(), key=lambda entry: entry.used_at)

    def _found(self) -> Iterator[Entry]:
        for path in (self._folder / ENTRIES).glob("*/*"):
            # A hidden file is still being written.
            if not path.name.startswith("."):
                try:
                    yield Entry(path, path.stat())
                except OSError:
                    continue

    def _let_go(self) -> None:
        for run in folders_in(self._folder / RUNS):
            if not run.name.startswith(".") and not _is_held(run):
                shutil.rmtree(run, ignore_errors=True)


def _is_held(run: Path) -> bool:
    try:
        with (run / LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
