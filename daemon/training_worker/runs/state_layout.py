"""The layout of the state directory, and of the folders beside a job's output."""

from pathlib import Path

from training_schemas.jobs import TrainingJob


def attempt_path(output: Path, job_id: str, attempt: int) -> Path:
    """Return where an attempt writes: beside the output, so that a rename promotes it."""
    return output.parent / f".{output.name}.{job_id}.{attempt}"


def runs_dir(state_dir: Path) -> Path:
    """Return the parent of the run folders."""
    return state_dir / "runs"


def run_path(state_dir: Path, job_id: str, attempt: int) -> Path:
    """Return the run folder of an attempt."""
    return runs_dir(state_dir) / f"{job_id}.{attempt}"


def caches_dir(state_dir: Path) -> Path:
    """Return where trainers keep encoder outputs, for the runs that come after them."""
    return state_dir / "caches"


def output_folder(job: TrainingJob) -> Path:
    """Return where the result goes: no link and no `..`, which no rename could replace."""
    return Path(job.output_path).resolve()


def attempt_folder(job: TrainingJob, attempt: int) -> Path:
    """Return where an attempt at a job writes."""
    return attempt_path(output_folder(job), job.job_id, attempt)
