"""The former place of `training_worker.client.planning`; gone in the release after next."""

import warnings

from training_worker.client.planning import Advisor, Choice, HardwareInfo

__all__ = ["Advisor", "Choice", "HardwareInfo"]

warnings.warn(
    "training_worker.advisor is deprecated: use training_worker.client.planning",
    DeprecationWarning,
    stacklevel=2,
)
