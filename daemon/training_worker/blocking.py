"""The former place of `training_worker.client.sync_client`; gone in the release after next."""

import warnings

from training_worker.client.sync_client import TrainingWorkerAPI

__all__ = ["TrainingWorkerAPI"]

warnings.warn(
    "training_worker.blocking is deprecated: use training_worker.client.sync_client",
    DeprecationWarning,
    stacklevel=2,
)
