"""The writer of the run's progress."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.protocol.progress_file import ProgressFile


class ProgressWriter(ProgressFile):
    """Appends records to a progress file, each as one whole line in a single write, numbered from 1."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file.

        Raises:
            FileExistsError: The file has records already; a run folder serves one run.
        """
        super().__init__(path, clock)
        self.busy = False
        """A record is being written, and a signal's handler may not write one of its own."""
        self.current_phase: str | None = None
        """The phase that began last."""

    def write(self, record: str, **fields: Any) -> None:
        """Append a record of this kind; its sequence and time are filled in here.

        Raises:
            OSError: It cannot be written, or only its beginning, which the next record then completes first.
        """
        self.busy = True
        try:
            self.append(lambda sequence, now: _encoded(record=record, sequence=sequence, time=now, **fields))
        finally:
            self.busy = False

    def phase(self, phase: str, total: int | None = None) -> None:
        """Report that a phase begins."""
        self.current_phase = phase
        self.write("phase", phase=phase, total=total)

    def warn(self, message: str) -> None:
        """Report what the user should know and that does not stop the run."""
        self.write("warning", message=message)


def _encoded(**fields: Any) -> bytes:
    return json.dumps(fields, allow_nan=False).encode()
