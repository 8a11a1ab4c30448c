"""A run that something is done to in the middle: whenever a record is written, the test may act."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_schemas.progress import ProgressRecord
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter

OnRecord = Callable[[type[ProgressRecord], dict[str, Any]], None]


class WatchedProgress(ProgressWriter):
    """A writer that calls back for each record, its kind and its fields, once it is written."""

    def __init__(self, path: Path, on_record: OnRecord) -> None:
        super().__init__(path)
        self._on_record = on_record

    def write(self, record: type[ProgressRecord], **fields: Any) -> None:
        super().write(record, **fields)
        self._on_record(record, fields)
