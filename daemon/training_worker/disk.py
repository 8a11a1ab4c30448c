"""The host's disks: whether a job has room on them, and what is old enough to be removed."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from training_presets.disk import DiskNeed
from training_schemas.base import Wire
from training_worker.identity import Identity
from training_worker.run import read_run
from training_worker.run_folder import IDENTITY_FILE, RunFolder, attempt_path, runs_dir

GIB = 2**30
DAY = 24 * 3600.0

log = structlog.get_logger()


class EndedJob(Wire, frozen=True, kw_only=True):
    """A job that ended here without a result, for good: what its attempts, up to this one, left beside the output."""

    job_id: str
    output_path: str
    attempt: int


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_bytes(path: Path) -> int:
    """What may still be written below a path, which need not be there yet. Raises `OSError`."""
    return shutil.disk_usage(existing(path)).free


def lacking(need: DiskNeed, output: Path, state_dir: Path) -> str | None:
    """What is missing for a run with this need, in words with figures; None if there is room. Raises `OSError`."""
    places = {output: need.output, state_dir: need.state}
    if existing(output).stat().st_dev == existing(state_dir).stat().st_dev:
        places = {output: need.output + need.state}
    missing = [
        f"{needed / GIB:.1f} GiB are needed at {path}, and {free / GIB:.1f} are free"
        for path, needed in places.items()
        if (free := free_bytes(path)) < needed
    ]
    return "; ".join(missing) or None


def ended_dir(state_dir: Path) -> Path:
    """Where it is noted which jobs ended here."""
    return state_dir / "ended"


def note_ended(state_dir: Path, job: EndedJob) -> None:
    """Remember that what the job's attempts left is of no use but to look at, or to be put back. Never fails."""
    try:
        ended_dir(state_dir).mkdir(parents=True, exist_ok=True)
        (ended_dir(state_dir) / f"{job.job_id}.json").write_bytes(msgspec.json.encode(job))
    except OSError as error:
        log.warning("ended_job_not_noted", job=job.job_id, error=str(error))


class Cleaning:
    """Removes what nothing has changed since ``before`` (unix seconds), and nobody will ask for.

    Run folders that a daemon can read are never removed: each is a job that runs, or one whose end is not told yet.
    """

    def __init__(self, state_dir: Path, output_roots: list[Path], before: float) -> None:
        self._state_dir = state_dir
        self._roots = [root.resolve() for root in output_roots]
        self._before = before

    def clean(self) -> list[Path]:
        """Remove it; what was removed. What cannot be read or removed is left."""
        removed = []
        for path in (*self._runs(), *self._standby(), *self._attempts()):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                log.info("cleaned", path=str(path))
                removed.append(path)
        self._forget()
        return removed

    def _runs(self) -> Iterator[Path]:
        for path in _folders(runs_dir(self._state_dir)):
            if self._is_old(path) and not _is_in_use(path) and read_run(RunFolder(path)) is None and path.exists():
                yield path

    def _standby(self) -> Iterator[Path]:
        for card in _folders(self._state_dir / "standby"):
            yield from (path for path in _folders(card) if self._is_old(path) and not _is_in_use(path))

    def _attempts(self) -> Iterator[Path]:
        for _, job in self._ended():
            output = Path(job.output_path)
            if self._runs_again(job.job_id) or not any(root in output.parents for root in self._roots):
                continue
            for path in (attempt_path(output, job.job_id, n) for n in range(1, job.attempt + 1)):
                if path.is_dir() and not path.is_symlink() and self._is_old(path):
                    yield path

    def _ended(self) -> Iterator[tuple[Path, EndedJob]]:
        """The notes that are old enough."""
        for note in sorted(ended_dir(self._state_dir).glob("*.json")):
            try:
                job = msgspec.json.decode(note.read_bytes(), type=EndedJob)
                if note.stat().st_mtime < self._before:
                    yield note, job
            except (OSError, ValueError) as error:
                log.warning("file_unreadable", path=str(note), error=str(error))

    def _forget(self) -> None:
        for note, job in self._ended():
            if not self._runs_again(job.job_id):
                note.unlink(missing_ok=True)

    def _runs_again(self, job_id: str) -> bool:
        """Whether it was put back, and is here: it may go on from what it left."""
        own = re.compile(re.escape(job_id) + r"\.[0-9]+\Z")
        return any(own.match(path.name) for path in _folders(runs_dir(self._state_dir)))

    def _is_old(self, folder: Path) -> bool:
        try:
            times = [path.lstat().st_mtime for path in (folder, *folder.rglob("*"))]
        except OSError:
            return False
        return max(times) < self._before


def _folders(path: Path) -> list[Path]:
    return [entry for entry in sorted(path.iterdir()) if entry.is_dir()] if path.is_dir() else []


def _is_in_use(folder: Path) -> bool:
    identity = Identity.read(folder / IDENTITY_FILE)
    return identity is not None and identity.is_alive
