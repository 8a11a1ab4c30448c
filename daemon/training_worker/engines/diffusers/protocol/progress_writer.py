"""The writer of the run's progress."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec

from training_schemas.progress import (
    DoneRecord,
    FailedRecord,
    Phase,
    PhaseRecord,
    ProgressRecord,
    StoppedRecord,
)

LAST = (DoneRecord, FailedRecord, StoppedRecord)


class ProgressWriter:
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
        # A thread may have to say that a helper has ended.
        self._lock = threading.Lock()
        self._ended = False
        self._sequence = 0
        self._rest = b""
        self.current_phase: Phase | None = None
        """The phase that began last."""

    def write(self, record: type[ProgressRecord], **fields: Any) -> None:
        """Append a record of the given kind; its sequence and time are filled in here. None follows the last one.

        Raises:
            OSError: It cannot be written, or only its beginning, which the next record then completes first.
        """
        with self._lock:
            if self._ended:
                return
            line = msgspec.json.encode(record(sequence=self._sequence + 1, time=self._clock(), **fields)) + b"\n"
            data = self._rest + line
            written = os.write(self._file, data)
            begun = written > len(self._rest)
            self._sequence += begun
            self._ended = begun and issubclass(record, LAST)
            self._rest = data[written:] if begun else self._rest[written:]
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def phase(self, phase: Phase, total: int | None = None) -> None:
        """Say that a phase begins."""
        self.current_phase = phase
        self.write(PhaseRecord, phase=phase, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
