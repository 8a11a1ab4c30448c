"""The promotion of a finished attempt to the job's output: one rename, and a manifest beside the files."""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from training_schemas.jobs import TrainingJob
from training_schemas.plans import Prediction
from training_schemas.progress import DoneRecord, FailureReason
from training_schemas.spec import RunSpec
from training_schemas.usage import Usage
from training_worker.errors import AttemptError
from training_worker.runs.run_directory import fsync_folder
from training_worker.runs.state_layout import attempt_folder, output_folder
from training_worker.version import __version__

MANIFEST_FILE = "manifest.json"


class Account(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The prediction for the last attempt, and what it took; times are unix seconds."""

    started_at: float
    finished_at: float
    usage: Usage
    predicted: Prediction | None
    changes: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The description of the output, in its ``manifest.json``."""

    job: TrainingJob
    worker_version: str
    spec: RunSpec
    result: DoneRecord
    account: Account | None = None


def read_result(job: TrainingJob) -> DoneRecord | None:
    """Read how the job ended, if its finished result exists already: the ledger forgets after a while."""
    try:
        manifest = msgspec.json.decode((output_folder(job) / MANIFEST_FILE).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
    return manifest.result if manifest.job == job else None


def promote(job: TrainingJob, spec: RunSpec, result: DoneRecord, account: Account) -> DoneRecord:
    """Make a finished attempt the job's output, by one rename, and remove what earlier ones left.

    It is done only once: a daemon may have died right after it. Returns the record of the job's output.

    Raises `AttemptError` if the output cannot be written.
    """
    manifest = Manifest(job=job, worker_version=__version__, spec=spec, result=result, account=account)
    folder, output = Path(spec.attempt_path), output_folder(job)
    there = read_result(job)
    if there is None:
        _move(manifest, folder, output)
    for earlier in range(1, spec.attempt):
        shutil.rmtree(attempt_folder(job, earlier), ignore_errors=True)
    return there or result


def _move(manifest: Manifest, folder: Path, output: Path) -> None:
    try:
        (folder / MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        folder.rename(output)
        fsync_folder(output.parent)
    except OSError as error:
        raise AttemptError(FailureReason.OUTPUT_INVALID, f"cannot write output: {error}") from None
