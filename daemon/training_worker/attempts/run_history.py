"""What of earlier attempts a new one can go on from on this host."""

from pathlib import Path

from training_schemas.ledger import CheckpointSaved
from training_worker.ledger.job_history import JobHistory


def resume_point(before: JobHistory) -> CheckpointSaved | None:
    """The last checkpoint that can be read on this host."""
    return next((saved for saved in reversed(before.checkpoints) if Path(saved.path).is_dir()), None)
