"""Optimizers and schedules of the learning rate, by the names that jobs use."""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from training_schemas.spec import LrScheduler, OptimizerName, TrainingParameters

Group = dict[str, Any]

FUSED_ON = {"cuda", "cpu"}


def make_optimizer(groups: Iterable[Group], parameters: TrainingParameters) -> torch.optim.Optimizer:
    """The optimizer that a job asks for, over groups of weights (``params``), each with its rate (``lr``)."""
    groups, decay = list(groups), parameters.weight_decay
    match parameters.optimizer:
        case OptimizerName.ADAMW:
            return torch.optim.AdamW(groups, weight_decay=decay, fused=_can_fuse(groups))
        case OptimizerName.ADAMW_8BIT:
            import bitsandbytes  # noqa: PLC0415 - it takes a second, and most runs do without

            eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, weight_decay=decay)
            return eight_bit
        case OptimizerName.ADAFACTOR:
            from transformers.optimization import Adafactor  # noqa: PLC0415

            # At the job's own rate: neither relative to a weight's size nor falling by itself.
            adafactor: torch.optim.Optimizer = Adafactor(
                groups, weight_decay=decay, scale_parameter=False, relative_step=False
            )
            return adafactor
        case OptimizerName.PRODIGY:
            from prodigyopt import Prodigy  # noqa: PLC0415

            # It finds the rate by itself, one for all weights; that of the job is a factor. Bias correction and the
            # safeguard are what its authors recommend for diffusion models.
            prodigy: torch.optim.Optimizer = Prodigy(
                [{**group, "lr": parameters.learning_rate} for group in groups],
                weight_decay=decay,
                use_bias_correction=True,
                safeguard_warmup=True,
            )
            return prodigy


def _can_fuse(groups: Iterable[Group]) -> bool:
    """Whether torch can step all weights of a group in one kernel."""
    devices = {weight.device.type for group in groups for weight in group["params"]}
    return devices <= FUSED_ON


def make_schedule(
    optimizer: torch.optim.Optimizer, parameters: TrainingParameters
) -> torch.optim.lr_scheduler.LambdaLR:
    """How the rates go over the run, from diffusers. Its step is an optimizer step."""
    warmup = 0 if parameters.lr_scheduler is LrScheduler.CONSTANT else parameters.lr_warmup_steps
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        parameters.lr_scheduler.value, optimizer, num_warmup_steps=warmup, num_training_steps=parameters.max_train_steps
    )
    return schedule


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the first group of weights; Prodigy's is the one that it has found."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))
