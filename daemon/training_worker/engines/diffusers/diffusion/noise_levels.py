"""Which noise levels are trained on. A level, sigma, runs from 0, the image, to 1, noise."""

import math

import torch

from training_schemas.spec import FluxLoraParameters, TimestepSampler

# How far FLUX moves its levels towards noise when it draws: the logarithm of the shift is linear in the image's tokens,
# between these (the scheduler's configuration of FLUX.1-dev: base and max, image_seq_len and shift).
FEW_TOKENS, FEW_SHIFT = 256, 0.5
MANY_TOKENS, MANY_SHIFT = 4096, 1.15


def shift_sigma(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Move levels towards noise: ``shift * u / (1 + (shift - 1) * u)`` (arXiv:2403.03206, equation 23)."""
    return shift * u / (1 + (shift - 1) * u)


def resolution_shift(tokens: int) -> float:
    """The shift for so many image tokens."""
    slope = (MANY_SHIFT - FEW_SHIFT) / (MANY_TOKENS - FEW_TOKENS)
    return math.exp(FEW_SHIFT + slope * (tokens - FEW_TOKENS))


def draw_sigma(generator: torch.Generator, tokens: int, parameters: FluxLoraParameters) -> torch.Tensor:
    """Draw the level of one sample of so many image tokens, a scalar in [0, 1)."""
    match parameters.timestep_sampler:
        case TimestepSampler.UNIFORM:
            return torch.rand((), generator=generator)
        case TimestepSampler.SIGMOID:
            # Logit-normal with location 0 and scale 1 (arXiv:2403.03206, equation 19).
            return torch.randn((), generator=generator).sigmoid()
        case TimestepSampler.RESOLUTION_SHIFT:
            return shift_sigma(torch.rand((), generator=generator), resolution_shift(tokens))
        case TimestepSampler.SHIFT:
            return shift_sigma(torch.rand((), generator=generator), parameters.discrete_flow_shift)
