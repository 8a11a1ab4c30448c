"""A run: one attempt's trainer and its folder, started by this daemon or re-attached after another one's end."""

from pathlib import Path

import msgspec
import structlog

from training_schemas.base import Wire
from training_schemas.jobs import EngineName, TrainingJob
from training_schemas.plans import Prediction, SettingChange
from training_schemas.spec import SPEC_FILE, RunSpec
from training_schemas.validation import InvalidMessageError
from training_worker.gpu.devices import GpuDevice
from training_worker.ledger.job_history import ClaimRecord
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.child_process import ChildProcess
from training_worker.runs.process_identity import ProcessIdentity
from training_worker.runs.run_directory import RECORD_FILE, RunDirectory
from training_worker.runs.state_layout import runs_dir

log = structlog.get_logger()


class RunRecord(Wire, frozen=True, kw_only=True):
    """The facts that a daemon needs to re-attach to a run; times are unix seconds.

    ``energy_j`` is its GPU's counter before the run, in joules.
    """

    job: TrainingJob
    submitted_at: float
    claim_record: ClaimRecord = msgspec.field(name="standing")
    device: GpuDevice = msgspec.field(name="card")
    engine: EngineName
    changes: dict[str, object]
    resumed_step: int
    started_at: float
    predicted: Prediction | None = None
    energy_j: float | None = None
    choices: list[SettingChange] = []
    gain: float | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run folder with its contents."""

    folder: RunDirectory
    spec: RunSpec
    record: RunRecord
    queued: QueuedJob

    def start(self, command: list[str], env: dict[str, str]) -> ChildProcess:
        """Start the trainer. Raises `OSError`."""
        folder = self.folder
        return ChildProcess.start(
            [*command, str(folder.path)],
            env=env,
            stdout=folder.stdout,
            stderr=folder.stderr,
            identity=folder.identity,
        )

    @property
    def identity(self) -> ProcessIdentity | None:
        """The identity of the trainer, running or not; None if it never started."""
        return ProcessIdentity.read(self.folder.identity)

    @property
    def has_begun(self) -> bool:
        """Whether a trainer was started for it; one that was started before has begun once its output goes here."""
        return self.folder.stdout.exists()

    def last_sign(self) -> float:
        """Return when the trainer last gave a sign of life (unix seconds)."""
        folder = self.folder
        return max(path.stat().st_mtime for path in (folder.progress, folder.stdout, folder.stderr) if path.exists())


def find_runs(state_dir: Path) -> list[Run]:
    """Return the runs that earlier daemons left, oldest first. Unfinished folders are removed."""
    if not runs_dir(state_dir).is_dir():
        return []
    runs = [run for path in runs_dir(state_dir).iterdir() if (run := read_run(RunDirectory(path))) is not None]
    return sorted(runs, key=lambda run: run.record.started_at)


def read_run(folder: RunDirectory) -> Run | None:
    """Return the run of a folder; None if it cannot be read. An unfinished folder is removed."""
    try:
        spec, record = folder.read(SPEC_FILE, RunSpec), folder.read(RECORD_FILE, RunRecord)
    except (msgspec.MsgspecError, OSError) as error:
        # Kept for inspection: the job itself comes back by its lease.
        log.warning("run_folder_unreadable", folder=str(folder.path), error=str(error))
        return None
    if spec is None or record is None or folder.path.name.startswith("."):
        folder.remove()
        return None
    try:
        queued = QueuedJob.submitted(msgspec.json.encode(record.job), record.submitted_at)
    except InvalidMessageError as error:
        # An upgrade has dropped what it was planned with.
        log.warning("run_folder_outdated", folder=str(folder.path), error=str(error))
        return None
    return Run(folder=folder, spec=spec, record=record, queued=queued)
