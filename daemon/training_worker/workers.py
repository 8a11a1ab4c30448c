"""The former place of `training_worker.client.fleet`; gone in the release after next."""

import warnings

from training_worker.client.fleet import WorkerCondition, Workers, WorkerState

__all__ = ["WorkerCondition", "WorkerState", "Workers"]

warnings.warn(
    "training_worker.workers is deprecated: use training_worker.client.fleet", DeprecationWarning, stacklevel=2
)
