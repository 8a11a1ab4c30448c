"""Trainers over the tiny models and a few random images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training_schemas.jobs import TrainingType
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_worker.engines.common.export.files import ADAPTER_FILE
from training_worker.engines.diffusers.diffusion.batches import BatchSource, Item
from training_worker.engines.diffusers.diffusion.latents import LatentImage
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts, TextSource
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.pipelines import PIPELINES
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline
from training_worker.engines.diffusers.training.trainer import Trainer

DATASET = "a hash"
CAPTIONS = ["a", "b", "c"]

BuildTrainer = Callable[..., Trainer]


class RandomImages:
    """Images of random latents, the same each time; nothing about them is left to chance."""

    def __init__(self, channels: int, shapes: Sequence[tuple[int, int]] = ((4, 4),) * 3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = [
            LatentImage(
                mean=torch.randn(channels, height, width, generator=generator),
                std=torch.ones(channels, height, width),
                mask=torch.ones(1, height, width),
                sizes=torch.tensor([64.0, 64, 0, 0, 64, 64]),
            )
            for height, width in shapes
        ]

    def draw(self, index: int, _: torch.Generator) -> LatentImage:
        """The image."""
        return self.images[index]

    def fixed(self, index: int) -> LatentImage:
        """The image."""
        return self.images[index]


class RandomTexts:
    """Embeddings of texts by their number, the same each time."""

    def __init__(self, width: int, pooled_width: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self._texts = {
            text: Texts(
                tokens=torch.randn(1, 6, width, generator=generator),
                pooled=torch.randn(1, pooled_width, generator=generator),
            )
            for text in [*CAPTIONS, ""]
        }

    def embed(self, texts: Sequence[str]) -> Texts:
        """Look them up."""
        found = [self._texts[text] for text in texts]
        return Texts(tokens=torch.cat([one.tokens for one in found]), pooled=torch.cat([one.pooled for one in found]))


def load_pipeline(
    model: Path, training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters
) -> TrainingPipeline[Any]:
    """Load a pipeline with what it needs to train; its encoders only where they are needed."""
    kind = PIPELINES[training_type]
    pipeline = kind(ModelLoader(model, kind.family, parameters.weight_dtype, "cpu"), parameters)
    if pipeline.keeps_encoders:
        pipeline.load_encoders()
    pipeline.load_denoiser()
    return pipeline


def build_trainer(
    model: Path,
    parameters: FluxLoraParameters | SdxlParameters,
    training_type: TrainingType = TrainingType.FLUX_LORA,
) -> Trainer:
    """Build a trainer; the images are the same each time."""
    pipeline = load_pipeline(model, training_type, parameters)
    flux = training_type is TrainingType.FLUX_LORA
    texts: TextSource = RandomTexts(32, 32) if flux else RandomTexts(80, 48)
    if pipeline.keeps_encoders:
        texts = pipeline
    items = [Item(caption=caption, shape=(32, 32)) for caption in CAPTIONS]
    batches = BatchSource(items, RandomImages(16 if flux else 4), pipeline.noising, parameters)
    return Trainer(pipeline, batches, texts)


def never() -> None:
    """Nobody asks to stop."""


def take_steps(trainer: Trainer, first: int, last: int) -> list[float]:
    """Take some steps and give their losses."""
    return [trainer.step(number, never) for number in range(first, last + 1)]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy the weights that learn."""
    return {key: weight.detach().clone() for key, weight in trainer.pipeline.weights().items()}


def assert_same_adapter(run: Path, other: Path) -> None:
    """Check that the results of two run folders agree to the last bit; the order in their headers may differ."""
    first, second = (load_file(folder / "attempt" / ADAPTER_FILE) for folder in (run, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
