"""Sample images, drawn with the weights as they stand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from PIL import Image

from training_schemas.progress import Phase, SampleRecord
from training_worker.engines.diffusers.diffusion.latents import decode_latents
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts
from training_worker.engines.diffusers.models.loader import release_memory
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.training.trainer import Trainer

FOLDER = "samples"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A sample image: after which step it was drawn, of which of the job's prompts, and its file."""

    step: int
    prompt: int
    path: Path


class Sampler:
    """Draws one image for each validation prompt, always from the same noise.

    Its randomness is its own: training goes on as if no image had been drawn. The autoencoder is loaded for each
    round and then freed. The guidance is the pipeline's own default, not that of training.
    """

    def __init__(self, trainer: Trainer, attempt: Path, progress: ProgressWriter) -> None:
        self._trainer = trainer
        self._pipeline = trainer.pipeline
        self._parameters = trainer.pipeline.parameters
        self._attempt = attempt
        self._progress = progress

    def draw(self, step: int, check_stop: Callable[[], None]) -> list[Sample]:
        """Draw all sample images of a step and report each; returns none without prompts."""
        prompts = self._parameters.validation_prompts
        if not prompts:
            return []
        self._progress.phase(Phase.SAMPLING, total=len(prompts))
        (self._attempt / FOLDER).mkdir(exist_ok=True)
        drawing = self._pipeline.drawing(self._pipeline.loader.vae())
        drawing.set_progress_bar_config(disable=True)
        samples = []
        for i, prompt in enumerate(prompts):
            check_stop()
            path = self._attempt / FOLDER / f"step-{step:08}-{i:02}.png"
            self._draw_one(drawing, prompt, check_stop).save(path)
            self._progress.write(SampleRecord, step=step, path=str(path), prompt=prompt)
            samples.append(Sample(step=step, prompt=i, path=path))
        del drawing
        release_memory()
        return samples

    @torch.no_grad()
    def _draw_one(self, drawing: Any, prompt: str, check_stop: Callable[[], None]) -> Image.Image:
        size = self._parameters.resolution

        def on_step_end(*_: object) -> dict[str, torch.Tensor]:
            check_stop()
            return {}

        drawn = drawing(
            **self._pipeline.prompt_arguments(prompt, self._embed),
            height=size,
            width=size,
            num_inference_steps=self._parameters.validation_inference_steps,
            generator=torch.Generator().manual_seed(self._parameters.seed),
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images
        # The pipeline would decode in the denoiser's type, which may not be the autoencoder's.
        pixels = decode_latents(drawing.vae, self._pipeline.unpacked(drawn, size, size))
        image: Image.Image = drawing.image_processor.postprocess(pixels)[0]
        return image

    def _embed(self, text: str) -> Texts:
        return self._trainer.texts.embed([text]).to(self._pipeline.loader.device)
