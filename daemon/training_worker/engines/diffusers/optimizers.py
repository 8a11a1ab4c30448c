"""Optimizers, by the names that jobs use."""

import torch

from training_schemas.progress import FailureReason
from training_schemas.spec import OptimizerName, TrainingParameters
from training_worker.engines.diffusers.failures import TrainingFailure


def make_optimizer(weights: list[torch.nn.Parameter], parameters: TrainingParameters) -> torch.optim.Optimizer:
    """The optimizer that a job asks for, at a constant rate.

    Raises:
        TrainingFailure: This trainer does not know it.
    """
    rate, decay = parameters.learning_rate, parameters.weight_decay
    match parameters.optimizer:
        case OptimizerName.ADAMW:
            return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
        case OptimizerName.ADAMW_8BIT:
            import bitsandbytes  # noqa: PLC0415 - it takes a second, and most runs do without

            optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(weights, lr=rate, weight_decay=decay)
            return optimizer
        case other:
            raise TrainingFailure(FailureReason.CONFIG_INVALID, f"cannot train: this trainer has no optimizer {other}")
