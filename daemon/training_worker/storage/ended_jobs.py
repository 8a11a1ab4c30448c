"""Ended jobs: which failed or were cancelled here, so that what they left can be found once nobody needs it."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from training_schemas.base import Wire

log = structlog.get_logger()


class EndedJob(Wire, frozen=True, kw_only=True):
    """A job that ended here for good without a result; its attempts up to this one left folders beside the output."""

    job_id: str
    output_path: str
    attempt: int


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """An ended job, the file that records it, and when that was written (unix seconds)."""

    path: Path
    job: EndedJob
    written_at: float


def ended_dir(state_dir: Path) -> Path:
    """Return the folder of the ended jobs' records."""
    return state_dir / "ended"


def note_ended(state_dir: Path, job: EndedJob) -> None:
    """Record that what the job's attempts left is only for looking at, or for putting the job back. Never fails."""
    try:
        ended_dir(state_dir).mkdir(parents=True, exist_ok=True)
        (ended_dir(state_dir) / f"{job.job_id}.json").write_bytes(msgspec.json.encode(job))
    except OSError as error:
        log.warning("ended_job_not_noted", job=job.job_id, error=str(error))


def notes(state_dir: Path) -> Iterator[Note]:
    """Yield all records; those that cannot be read are left out."""
    for path in sorted(ended_dir(state_dir).glob("*.json")):
        try:
            job = msgspec.json.decode(path.read_bytes(), type=EndedJob)
            yield Note(path=path, job=job, written_at=path.stat().st_mtime)
        except (OSError, ValueError) as error:
            log.warning("file_unreadable", path=str(path), error=str(error))
