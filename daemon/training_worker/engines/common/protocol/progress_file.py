"""The file of a run's progress."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path


class ProgressFile:
    """Appends records to a progress file, each as one whole line in a single write, numbered from 1."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file.

        Raises:
            FileExistsError: The file has records already; a run folder serves one run.
        """
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if os.fstat(self._file).st_size:
            os.close(self._file)
            raise FileExistsError(errno.EEXIST, "the run has been started before", str(path))
        self._clock = clock
        self._rest = b""
        self.sequence = 0
        """The number of the record that was begun last."""

    def append(self, encode: Callable[[int, float], bytes]) -> None:
        """Append the record, without its line's end, that ``encode`` makes of its sequence and time (unix seconds).

        Raises:
            OSError: It cannot be written, or only its beginning, which the next record then completes first.
        """
        data = self._rest + encode(self.sequence + 1, self._clock()) + b"\n"
        written = os.write(self._file, data)
        begun = written > len(self._rest)
        self.sequence += begun
        self._rest = data[written:] if begun else self._rest[written:]
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
