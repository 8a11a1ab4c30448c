"""Control requests of the daemon while the run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Request = TypeVar("Request")

QUOTED = 200  # characters of an unreadable line that the warning repeats


class RequestFile(Generic[Request]):
    """Reads the run's requests, a line each, while the daemon appends to their file.

    ``decode`` reads a line, and raises `ValueError` where it is no request.
    """

    def __init__(self, path: Path, decode: Callable[[bytes], Request]) -> None:
        self._path = path
        self._decode = decode
        self._offset = 0

    def read_new(self, warn: Callable[[str], None]) -> set[Request]:
        """Give what was asked for since the last call, each thing once; warn of lines that cannot be read."""
        requests = set()
        for line in self._new_lines():
            try:
                requests.add(self._decode(line))
            except ValueError as error:
                warn(f"cannot read request {line[:QUOTED].decode(errors='replace')!r}: {error}")
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
