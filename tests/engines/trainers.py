"""Trainers over the tiny model's transformer and a few random images."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.adapters import ADAPTER_FILE
from training_worker.engines.diffusers.caching import CachedExample, CachedImage, CachedText
from training_worker.engines.diffusers.models import ModelLoader
from training_worker.engines.diffusers.trainer import Trainer

IMAGES = ["a.png", "b.png", "c.png"]

BuildTrainer = Callable[[FluxLoraParameters], Trainer]


def build_trainer(model: Path, parameters: FluxLoraParameters) -> Trainer:
    """Build a trainer; the images are the same each time."""
    generator = torch.Generator().manual_seed(0)
    examples = [
        CachedExample(
            image=CachedImage(mean=torch.randn(16, 4, 4, generator=generator), std=torch.ones(16, 4, 4)),
            text=CachedText(
                tokens=torch.randn(6, 32, generator=generator), pooled=torch.randn(32, generator=generator)
            ),
        )
        for _ in IMAGES
    ]
    transformer = ModelLoader(model, parameters.weight_dtype, "cpu").transformer(parameters.quantization)
    return Trainer(transformer, examples, parameters)


def never() -> None:
    """Nobody asks to stop."""


def take_steps(trainer: Trainer, first: int, last: int) -> list[float]:
    """Take some steps and give their losses."""
    return [trainer.step(number, never) for number in range(first, last + 1)]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy the adapter's weights."""
    state = get_peft_model_state_dict(trainer.transformer)
    return {key: weight.detach().clone() for key, weight in state.items()}


def assert_same_adapter(run: Path, other: Path) -> None:
    """Check that the results of two run folders agree to the last bit; the order in their headers may differ."""
    first, second = (load_file(folder / "attempt" / ADAPTER_FILE) for folder in (run, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
