"""The run folder: the interface between the daemon and one trainer. It outlives them both."""

import os
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from training_schemas.base import Wire
from training_schemas.spec import (
    LEASE_FILE,
    PROGRESS_FILE,
    REQUESTS_FILE,
    SPEC_FILE,
    STDERR_FILE,
    STDOUT_FILE,
    RequestLine,
    RunLease,
    RunRequest,
    RunSpec,
)
from training_worker.runs.file_tail import last_lines
from training_worker.runs.process_identity import ProcessIdentity
from training_worker.runs.state_layout import run_path

log = structlog.get_logger()

OUTPUT_LINES = 50

# A trainer's output file that is larger is set aside and restarted; only the newest part of that is kept.
LARGEST_OUTPUT = 16 * 1024 * 1024
KEPT_OUTPUT = 4 * 1024 * 1024

# Read by the daemon alone: the trainer's identity, how far its records are published, and what has been decided.
IDENTITY_FILE = "process"
RECORD_FILE = "run.json"
CURSOR_FILE = "cursor.json"
STOP_FILE = "stop.json"
CLOSING_FILE = "closing.json"

T = TypeVar("T", bound=msgspec.Struct)


class Cursor(Wire, frozen=True, kw_only=True):
    """The published part of an attempt: events that were confirmed, and bytes of the progress file they came from."""

    sequence: int = 0
    offset: int = 0


class StopOrder(Wire, frozen=True, kw_only=True):
    """The record that the trainer was asked to stop, and why."""

    why: str
    cancelled: bool


class Bookmark:
    """The cursor of an attempt; kept in the run folder, if there is one."""

    def __init__(self, folder: "RunDirectory | None") -> None:
        self._folder = folder
        self.cursor = (folder and folder.find(CURSOR_FILE, Cursor)) or Cursor()

    def move(self, cursor: Cursor) -> None:
        """Advance the cursor."""
        self.cursor = cursor
        if self._folder is not None:
            self._folder.write(CURSOR_FILE, cursor)


class RunDirectory:
    """One attempt's folder below the state directory, named ``<job>.<attempt>``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, state_dir: Path, spec: RunSpec, lease: RunLease, record: msgspec.Struct) -> "RunDirectory":
        """Make the folder with its spec, its lease, its record and an empty progress file. Raises `OSError`."""
        folder = cls(run_path(state_dir, spec.job_id, spec.attempt))
        # Left by an attempt of the same number that the ledger has forgotten: nobody will ask for it.
        identity = ProcessIdentity.read(folder.identity)
        if identity is not None and identity.is_alive:
            raise FileExistsError(f"{folder.path} belongs to process {identity.pid}, which still runs")
        folder.remove()
        folder.path.mkdir(parents=True)
        (folder.path / SPEC_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2))
        folder.write_lease(lease)
        folder.progress.touch()
        # Last: a folder without it was never finished.
        folder.write(RECORD_FILE, record)
        return folder

    @property
    def progress(self) -> Path:
        """The file of the trainer's records."""
        return self.path / PROGRESS_FILE

    @property
    def stdout(self) -> Path:
        """The file of the trainer's standard output."""
        return self.path / STDOUT_FILE

    @property
    def stderr(self) -> Path:
        """The file of the trainer's standard error."""
        return self.path / STDERR_FILE

    @property
    def identity(self) -> Path:
        """The file that the trainer writes its identity to."""
        return self.path / IDENTITY_FILE

    def write(self, name: str, content: msgspec.Struct) -> None:
        """Write one of the daemon's files atomically."""
        new = self.path / f"{name}.new"
        new.write_bytes(msgspec.json.encode(content))
        new.replace(self.path / name)

    def read(self, name: str, kind: type[T]) -> T | None:
        """Read one of the daemon's files; None if it does not exist. Raises `msgspec.MsgspecError`."""
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except FileNotFoundError:
            return None

    def find(self, name: str, kind: type[T]) -> T | None:
        """Read as `read` does; also return None if the file was torn by a loss of power."""
        try:
            return self.read(name, kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("file_unreadable", path=str(self.path / name), error=str(error))
            return None

    def write_lease(self, lease: RunLease) -> None:
        """Write for the trainer until when the job is ours."""
        self.write(LEASE_FILE, lease)

    def request(self, request: RunRequest) -> None:
        """Ask the trainer for something."""
        with (self.path / REQUESTS_FILE).open("ab") as file:
            file.write(msgspec.json.encode(RequestLine(request=request)) + b"\n")

    def output_tail(self) -> list[str]:
        """Return the last lines of the trainer's output."""
        return self._tail_of(self.stderr) or self._tail_of(self.stdout)

    def _tail_of(self, file: Path) -> list[str]:
        return [*last_lines(_aside(file), OUTPUT_LINES), *last_lines(file, OUTPUT_LINES)][-OUTPUT_LINES:]

    def shorten_output(self) -> None:
        """Keep the files that a trainer writes to from filling the disk. Raises `OSError`.

        The trainer has them open for appending, so it continues at the new beginning. What it writes between the copy
        and the cut is lost.
        """
        for file in (self.stdout, self.stderr):
            if file.exists() and file.stat().st_size > LARGEST_OUTPUT:
                with file.open("rb") as source:
                    source.seek(-KEPT_OUTPUT, os.SEEK_END)
                    _aside(file).write_bytes(source.read(KEPT_OUTPUT))
                os.truncate(file, 0)
                log.info("output_shortened", path=str(file))

    def remove(self) -> None:
        """Delete the folder. It is renamed first: half a folder is not found again."""
        gone = self.path.with_name(f".{self.path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        if self.path.exists():
            self.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _aside(file: Path) -> Path:
    return file.with_name(f"{file.name}.1")


def fsync_folder(path: Path) -> None:
    """Make a rename inside this folder survive a power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
