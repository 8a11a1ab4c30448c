"""Each optimizer, tried by one step beside the same step in float64 on the CPU."""

from typing import Any

import msgspec
import torch

from training_schemas.spec import (
    FluxLoraParameters,
    LoraTargets,
    LrScheduler,
    OptimizerName,
    Quantization,
    TimestepSampler,
    WeightDtype,
)
from training_worker.engines.common.selftest.child import Fault, Trial, compare
from training_worker.engines.diffusers.optim.optimizers import make_optimizer

# The matrices of an adapter beside a layer of FLUX.1-dev; 8-bit states need 4,096 numbers at least.
SHAPES = ((16, 3072), (3072, 16), (16, 12288))
SEED = 11
RATE = 1e-4
DECAY = 0.01

# Of the norm of a step's difference by the norm of the step: loose, since states in 8 bits are rounded, and steps are
# sums that float32 keeps 24 bits of.
TOLERANCE = 0.05

# Only rate, decay and name matter to an optimizer; the rest is what the spec asks for.
PARAMETERS = FluxLoraParameters(
    resolution=512,
    aspect_ratio_buckets=False,
    random_crop=False,
    random_flip=False,
    masked_loss=False,
    trigger_word="",
    caption_prefix="",
    caption_dropout=0,
    shuffle_captions=False,
    batch_size=1,
    gradient_accumulation_steps=1,
    max_train_steps=100,
    learning_rate=RATE,
    text_encoder_learning_rate=RATE,
    lr_scheduler=LrScheduler.CONSTANT,
    lr_warmup_steps=0,
    seed=0,
    gradient_checkpointing=False,
    weight_dtype=WeightDtype.BFLOAT16,
    quantization=Quantization.NONE,
    cache_text_encoder_outputs=True,
    cache_vae_outputs=True,
    train_text_encoder=False,
    optimizer=OptimizerName.ADAMW,
    weight_decay=DECAY,
    max_grad_norm=1,
    ema_decay=0,
    checkpoint_every=0,
    keep_checkpoints=1,
    sample_every=0,
    validation_prompts=[],
    validation_inference_steps=1,
    lora_rank=16,
    lora_targets=LoraTargets.ATTENTION,
    timestep_sampler=TimestepSampler.SIGMOID,
    discrete_flow_shift=1,
    guidance_scale=1,
    clip_tokenizer_max_length=77,
    t5_tokenizer_max_length=512,
)


def optimizer_trials(device: str, fault: Fault) -> dict[str, Trial]:
    """A trial of each optimizer."""
    return {f"optimizer.{name}": _trial(name, device, fault) for name in OptimizerName}


def make(name: OptimizerName, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer as a run has it, over all weights as one group."""
    # Prodigy's is a factor of a rate that begins at 1e-6: with a small one, float32 would round its step away.
    rate = 1.0 if name is OptimizerName.PRODIGY else RATE
    parameters = msgspec.structs.replace(PARAMETERS, optimizer=name, learning_rate=rate)
    return make_optimizer([{"params": weights, "lr": rate}], parameters)


def _trial(name: OptimizerName, device: str, fault: Fault) -> Trial:
    # In 32 bits it is the same rule, and one that the CPU has in 64.
    exactly = OptimizerName.ADAMW if name is OptimizerName.ADAMW_8BIT else name

    def trial() -> dict[str, Any]:
        given = _step(name, device, torch.float32)
        given = {key: fault(f"optimizer.{name}", value) for key, value in given.items()}
        return compare(given, _step(exactly, "cpu", torch.float64), TOLERANCE, f"a step of {name}")

    return trial


def _step(name: OptimizerName, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a step adds to each weight, in float64."""
    generator = torch.Generator().manual_seed(SEED)
    weights = []
    for shape in SHAPES:
        # A weight that is float32 in both, so that the difference is that of the step.
        values = 0.02 * torch.randn(shape, generator=generator)
        weight = torch.nn.Parameter(values.to(device, dtype))
        weight.grad = (1e-3 * torch.randn(shape, generator=generator)).to(device, dtype)
        weights.append(weight)
    before = [weight.detach().double().clone() for weight in weights]
    make(name, weights).step()
    return {
        f"weight {weight.shape[0]} x {weight.shape[1]}": (weight.detach().double() - old).cpu()
        for weight, old in zip(weights, before, strict=True)
    }
