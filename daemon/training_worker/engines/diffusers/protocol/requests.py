"""Control requests of the daemon while the run goes on: a checkpoint, or sample images."""

from pathlib import Path

import msgspec

from training_schemas.progress import WarningRecord
from training_schemas.spec import RequestLine, RunRequest
from training_worker.engines.common.protocol.requests import RequestFile
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter


class RequestReader(RequestFile[RunRequest]):
    """Reads the run's requests, a line each, while the daemon appends to their file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _decode)

    def take(self, progress: ProgressWriter) -> set[RunRequest]:
        """Give what was asked for since the last call, each thing once; warn of lines that cannot be read."""
        return self.read_new(lambda message: progress.write(WarningRecord, message=message))


def _decode(line: bytes) -> RunRequest:
    """Raise `ValueError`: msgspec's, or of text that is not UTF-8."""
    return msgspec.json.decode(line, type=RequestLine).request
