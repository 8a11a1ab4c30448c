"""A run: one attempt's trainer and its folder, started by this daemon or found again after another one's end."""

import os
from pathlib import Path

import msgspec
import structlog

from training_schemas.base import Wire
from training_schemas.jobs import EngineName, TrainingJob
from training_schemas.plans import Prediction
from training_schemas.spec import SPEC_FILE, RunSpec
from training_schemas.validation import InvalidMessageError
from training_worker.cards import Card
from training_worker.history import Standing
from training_worker.identity import Identity
from training_worker.process import Child
from training_worker.queued_job import QueuedJob
from training_worker.run_folder import RECORD_FILE, RunFolder, runs_dir

# What a trainer needs of the daemon's environment. All else stays here, secrets first of all.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")

log = structlog.get_logger()


def bare_environment() -> dict[str, str]:
    """What a program with an engine's interpreter is given: no network for model hubs, none of our settings."""
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | own


def trainer_environment(card: Card) -> dict[str, str]:
    """The environment of a trainer: bare, with its own cards and no other."""
    return bare_environment() | {"CUDA_VISIBLE_DEVICES": "" if card.simulated else card.uuid}


class RunRecord(Wire, frozen=True, kw_only=True):
    """What a daemon must know to take a run up again; times are unix seconds.

    ``energy_j`` is what its card's counter said before it, in joules.
    """

    job: TrainingJob
    submitted_at: float
    standing: Standing
    card: Card
    engine: EngineName
    changes: dict[str, object]
    resumed_step: int
    started_at: float
    predicted: Prediction | None = None
    energy_j: float | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run folder with what is in it."""

    folder: RunFolder
    spec: RunSpec
    record: RunRecord
    queued: QueuedJob

    def start(self, command: list[str], env: dict[str, str]) -> Child:
        """Start the trainer. Raises `OSError`."""
        folder = self.folder
        return Child.start(
            [*command, str(folder.path)],
            env=env,
            stdout=folder.stdout,
            stderr=folder.stderr,
            identity=folder.identity,
        )

    @property
    def identity(self) -> Identity | None:
        """Who the trainer is, or was; None if it never started."""
        return Identity.read(self.folder.identity)

    @property
    def has_begun(self) -> bool:
        """Whether a trainer was started for it; one that was started before has begun once its output goes here."""
        return self.folder.stdout.exists()

    def last_sign(self) -> float:
        """When the trainer last gave a sign of life (unix seconds)."""
        folder = self.folder
        return max(path.stat().st_mtime for path in (folder.progress, folder.stdout, folder.stderr) if path.exists())


def find_runs(state_dir: Path) -> list[Run]:
    """The runs that earlier daemons left, oldest first. What was never finished being made is removed."""
    if not runs_dir(state_dir).is_dir():
        return []
    runs = [run for path in runs_dir(state_dir).iterdir() if (run := read_run(RunFolder(path))) is not None]
    return sorted(runs, key=lambda run: run.record.started_at)


def read_run(folder: RunFolder) -> Run | None:
    """The run of a folder; None if it cannot be read. What was never finished being made is removed."""
    try:
        spec, record = folder.read(SPEC_FILE, RunSpec), folder.read(RECORD_FILE, RunRecord)
    except (msgspec.MsgspecError, OSError) as error:
        # Kept for whoever looks: the job itself comes back by its lease.
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
