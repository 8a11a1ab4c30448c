"""The run folder: where the daemon and one trainer meet. It outlives them both."""

import os
import shutil
from pathlib import Path

import msgspec

from training_schemas.spec import LEASE_FILE, PROGRESS_FILE, SPEC_FILE, STDERR_FILE, STDOUT_FILE, RunLease, RunSpec
from training_worker.tail import last_lines

OUTPUT_LINES = 50


class RunFolder:
    """One attempt's folder below the state directory, named ``<job>.<attempt>``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, state_dir: Path, spec: RunSpec, lease: RunLease) -> "RunFolder":
        """Make the folder with its spec, its lease and an empty progress file. Raises `OSError`."""
        folder = cls(state_dir / "runs" / f"{spec.job_id}.{spec.attempt}")
        folder.path.mkdir(parents=True)
        (folder.path / SPEC_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2))
        folder.write_lease(lease)
        folder.progress.touch()
        return folder

    @property
    def progress(self) -> Path:
        """Where the trainer's records are."""
        return self.path / PROGRESS_FILE

    @property
    def stdout(self) -> Path:
        """Where the trainer's standard output goes."""
        return self.path / STDOUT_FILE

    @property
    def stderr(self) -> Path:
        """Where the trainer's standard error goes."""
        return self.path / STDERR_FILE

    def write_lease(self, lease: RunLease) -> None:
        """Tell the trainer until when the job is ours; it never sees half a file."""
        new = self.path / f"{LEASE_FILE}.new"
        new.write_bytes(msgspec.json.encode(lease))
        new.replace(self.path / LEASE_FILE)

    def output_tail(self) -> list[str]:
        """The trainer's last words."""
        return last_lines(self.stderr, OUTPUT_LINES) or last_lines(self.stdout, OUTPUT_LINES)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def fsync_folder(path: Path) -> None:
    """Make a rename inside this folder survive a power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
