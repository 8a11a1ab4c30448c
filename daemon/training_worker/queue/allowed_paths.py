"""The check of which paths of this host a job may name."""

from pathlib import Path

from training_schemas.jobs import TrainingJob
from training_schemas.progress import Fault
from training_worker.settings import Settings


def path_faults(job: TrainingJob, settings: Settings) -> list[Fault]:
    """Return what is wrong with a job's paths, after resolving links: relative, or outside the roots."""
    named = {
        "datasetPath": (job.dataset_path, settings.dataset_roots),
        "outputPath": (job.output_path, settings.output_roots),
    }
    return [
        Fault(path=field, reason=reason)
        for field, (path, roots) in named.items()
        if (reason := _outside(path, roots)) is not None
    ]


def _outside(path: str, roots: list[Path]) -> str | None:
    if "\0" in path:
        return "contains a null character"
    if not Path(path).is_absolute():
        return f"must be absolute, got {path!r}"
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself, before Python 3.13
        return f"cannot be resolved: {error}"
    # A root itself is no data set and no output.
    if any(root.resolve() in resolved.parents for root in roots):
        return None
    return f"{path} is outside the allowed roots: {', '.join(map(str, roots))}"
