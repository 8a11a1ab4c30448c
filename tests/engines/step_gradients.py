"""The gradients of one step with all that may differ between its samples, alone or in one of several processes.

``python -m tests.engines.step_gradients FOLDER RANK SIZE CASE ...`` writes them to ``FOLDER/<case>-RANK.safetensors``,
where cases are counted from 0. A case is JSON: ``[MODEL, TRAINING_TYPE, BATCH_SIZE, ACCUMULATION]``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from safetensors.torch import save_file
from tests.engines.conftest import PARAMETERS, SDXL_PARAMETERS
from tests.engines.trainers import CAPTIONS, RandomImages, RandomTexts, load_pipeline, never

from training_schemas.jobs import ModelFamily, TrainingType
from training_worker.engines.diffusers.diffusion.batches import BatchSource, Item
from training_worker.engines.diffusers.diffusion.latents import LatentImage, draw_flip
from training_worker.engines.diffusers.training.process_group import ProcessGroup, SingleProcess
from training_worker.engines.diffusers.training.trainer import Trainer

LOSS = "loss"
# Of latents: the first takes part most often, so that micro-batches of several sizes come up.
SHAPES = [(4, 4), (4, 4), (4, 8), (4, 4), (8, 4), (4, 8)]


class MixedImages(RandomImages):
    """Images of several shapes, each with a mask of its own, mirrored by chance."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, SHAPES)
        generator = torch.Generator().manual_seed(2)
        self.images = [
            replace(image, mask=torch.rand(image.mask.shape, generator=generator), std=image.std * 0.5)
            for image in self.images
        ]

    def draw(self, index: int, generator: torch.Generator) -> LatentImage:
        """The image or its mirror image."""
        image = self.images[index]
        if not draw_flip(generator):
            return image
        return replace(image, mean=image.mean.flip(-1), std=image.std.flip(-1), mask=image.mask.flip(-1))


def mixed_trainer(
    model: Path, training_type: TrainingType, *, group: SingleProcess | None = None, **changes: Any
) -> Trainer:
    """A trainer over images of several shapes, whose captions are dropped by chance."""
    flux = training_type.family is ModelFamily.FLUX
    settings = replace(PARAMETERS if flux else SDXL_PARAMETERS, **{"caption_dropout": 0.3, **changes})
    pipeline = load_pipeline(model, training_type, settings)
    items = [
        Item(caption=CAPTIONS[index % len(CAPTIONS)], shape=(width * 8, height * 8))
        for index, (height, width) in enumerate(SHAPES)
    ]
    batches = BatchSource(items, MixedImages(16 if flux else 4), pipeline.noising, settings)
    return Trainer(pipeline, batches, RandomTexts(32, 32) if flux else RandomTexts(80, 48), group)


def stir(trainer: Trainer) -> None:
    """Give the adapter any values, since those that it starts with leave half of the gradients at zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in trainer.pipeline.weights().values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


def gradients_of_step(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The gradients of a step by the numbers of the weights, and its loss as a tensor without dimensions."""
    stir(trainer)
    loss = trainer.accumulate(1, never)
    weights = [weight for group in trainer.pipeline.groups() for weight in group["params"]]
    gradients = {str(number): weight.grad for number, weight in enumerate(weights) if weight.grad is not None}
    return {**gradients, LOSS: loss}


def main() -> None:
    """Take this process's share of a step of each case."""
    folder, rank, size, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    group = ProcessGroup(Path(folder), int(rank), int(size), "cpu")
    group.join()
    for number, case in enumerate(cases):
        model, training_type, batch_size, accumulation = json.loads(case)
        trainer = mixed_trainer(
            Path(model),
            TrainingType(training_type),
            group=group,
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        save_file(gradients_of_step(trainer), Path(folder) / f"{number}-{rank}.safetensors")


if __name__ == "__main__":
    main()
