"""Ended jobs: which failed or were cancelled here, so that what they left can be found once nobody wants it."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from training_schemas.base import Wire

log = structlog.get_logger()


class EndedJob(Wire, frozen=True, kw_only=True):
    """A job that ended here without a result, for good: what its attempts, up to this one, left beside the output."""

    job_id: str
    output_path: str
    attempt: int


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """An ended job, the file that says so, and when that was written (unix seconds)."""

    path: Path
    job: EndedJob
    written_at: float


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


def notes(state_dir: Path) -> Iterator[Note]:
    """All that was noted; what cannot be read is left out."""
    for path in sorted(ended_dir(state_dir).glob("*.json")):
        try:
            job = msgspec.json.decode(path.read_bytes(), type=EndedJob)
            yield Note(path=path, job=job, written_at=path.stat().st_mtime)
        except (OSError, ValueError) as error:
            log.warning("file_unreadable", path=str(path), error=str(error))
