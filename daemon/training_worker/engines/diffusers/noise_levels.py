"""Which noise levels are trained on. A level, sigma, runs from 0, the image, to 1, noise."""

import torch

from training_schemas.spec import FluxLoraParameters, TimestepSampler


def shift_sigma(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Move levels towards noise: ``shift * u / (1 + (shift - 1) * u)`` (arXiv:2403.03206, equation 23)."""
    return shift * u / (1 + (shift - 1) * u)


def draw_sigma(generator: torch.Generator, parameters: FluxLoraParameters) -> torch.Tensor:
    """Draw the level of one sample, a scalar in [0, 1)."""
    u = torch.rand((), generator=generator)
    if parameters.timestep_sampler is TimestepSampler.UNIFORM:
        return u
    return shift_sigma(u, parameters.discrete_flow_shift)
