"""The writer of the run's progress."""

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
from training_worker.engines.common.protocol.progress_file import ProgressFile

LAST = (DoneRecord, FailedRecord, StoppedRecord)


class ProgressWriter(ProgressFile):
    """Appends records to a progress file, each as one whole line in a single write, numbered from 1."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file.

        Raises:
            FileExistsError: The file has records already; a run folder serves one run.
        """
        super().__init__(path, clock)
        # A thread may have to report that a helper has ended.
        self._lock = threading.Lock()
        self._ended = False
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
            before = self.sequence
            try:
                self.append(lambda sequence, now: msgspec.json.encode(record(sequence=sequence, time=now, **fields)))
            finally:
                self._ended = self.sequence > before and issubclass(record, LAST)

    def phase(self, phase: Phase, total: int | None = None) -> None:
        """Report that a phase begins."""
        self.current_phase = phase
        self.write(PhaseRecord, phase=phase, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
