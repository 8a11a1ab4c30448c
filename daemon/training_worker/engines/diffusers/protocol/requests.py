"""What the daemon asks for while the run goes on: a checkpoint, or sample pictures."""

from pathlib import Path

import msgspec

from training_schemas.progress import WarningRecord
from training_schemas.spec import RequestLine, RunRequest
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter

QUOTED = 200  # characters of an unreadable line that the warning repeats


class RequestReader:
    """Reads the run's requests, a line each, while the daemon appends to their file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def take(self, progress: ProgressWriter) -> set[RunRequest]:
        """Give what was asked for since the last call, each thing once; warn of lines that cannot be read."""
        requests = set()
        for line in self._new_lines():
            try:
                requests.add(msgspec.json.decode(line, type=RequestLine).request)
            except ValueError as error:  # of msgspec, or of text that is not UTF-8
                quoted = line[:QUOTED].decode(errors="replace")
                progress.write(WarningRecord, message=f"cannot read request {quoted!r}: {error}")
        return requests

    def _new_lines(self) -> list[bytes]:
        """Read on; a line without an end is still being written, and is left for the next time."""
        try:
            if self._path.stat().st_size == self._offset:
                return []
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:
            return []  # there is no file before the first request
        self._offset += len(whole + end)
        return whole.split(b"\n") if end else []
