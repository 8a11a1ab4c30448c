"""The former place of `training_worker.client.results`; gone in the release after next."""

import warnings

from training_worker.client.results import CancelAnswer, CancelState, Receipt, cancel_answer

__all__ = ["CancelAnswer", "CancelState", "Receipt", "cancel_answer"]

warnings.warn(
    "training_worker.answers is deprecated: use training_worker.client.results",
    DeprecationWarning,
    stacklevel=2,
)
