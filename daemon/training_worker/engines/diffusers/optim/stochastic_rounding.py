"""Steps of weights that are kept in 16 bits, as if they had 32.

Of bfloat16's 8 bits most updates of a finetune would round to nothing. Here a weight is made float32, stepped, and
rounded to one of its two neighbours by chance, with the odds of its distance to each (Gupta et al. 2015,
arXiv:1502.02551), so that what is rounded away is right in the mean. Only one weight is in float32 at a time.
"""

import torch

LOW_BITS = 16  # what float32 has and bfloat16 has not


def step_with_rounding(optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """Take a step of an optimizer over bfloat16 weights, one after the other; it must not need them together."""
    groups = optimizer.param_groups
    try:
        for group in groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    optimizer.param_groups = [{**group, "params": [weight]}]
                    _step(optimizer, weight, generator)
    finally:
        optimizer.param_groups = groups


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round float32 to bfloat16, towards or away from zero by chance, so that the mean of many is the exact value."""
    # The bits of a float are in the order of its size: a carry out of the low ones makes the next larger neighbour.
    chance = torch.randint(0, 1 << LOW_BITS, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    bits = (values.contiguous().view(torch.int32) + chance) >> LOW_BITS << LOW_BITS
    return bits.view(torch.float32).to(torch.bfloat16)


def _step(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, generator: torch.Generator) -> None:
    half, gradient = weight.data, weight.grad
    weight.grad = None
    weight.data = half.float()
    weight.grad = None if gradient is None else gradient.float()
    optimizer.step()
    half.copy_(round_stochastically(weight.data, generator))
    weight.grad = None
    weight.data = half
