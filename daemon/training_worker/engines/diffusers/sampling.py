"""Sample pictures, drawn with the adapter as it stands."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image

from training_schemas.progress import Phase, SampleRecord
from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.caching import CachedText, decode_latents
from training_worker.engines.diffusers.models import ModelLoader, release_memory
from training_worker.engines.diffusers.progress import ProgressWriter

FOLDER = "samples"


class Sampler:
    """Draws one picture for each validation prompt, always from the same noise.

    Its randomness is its own: training goes on as if no picture had been drawn. The autoencoder is loaded for each
    round and then freed. The guidance is the pipeline's own default, not that of training.
    """

    def __init__(
        self,
        loader: ModelLoader,
        parameters: FluxLoraParameters,
        prompts: Mapping[str, CachedText],
        attempt: Path,
        progress: ProgressWriter,
    ) -> None:
        self._loader = loader
        self._parameters = parameters
        self._prompts = prompts
        self._attempt = attempt
        self._progress = progress

    def draw(self, transformer: FluxTransformer2DModel, step: int, check_stop: Callable[[], None]) -> list[Path]:
        """Draw all pictures of a step and report each; returns their files, none without prompts."""
        if not self._prompts:
            return []
        self._progress.phase(Phase.SAMPLING, total=len(self._prompts))
        (self._attempt / FOLDER).mkdir(exist_ok=True)
        pipeline = self._pipeline(transformer)
        paths = []
        for i, (prompt, text) in enumerate(self._prompts.items()):
            check_stop()
            path = self._attempt / FOLDER / f"step-{step:08}-{i:02}.png"
            self._draw_one(pipeline, text, check_stop).save(path)
            self._progress.write(SampleRecord, step=step, path=str(path), prompt=prompt)
            paths.append(path)
        del pipeline
        release_memory()
        return paths

    def _pipeline(self, transformer: FluxTransformer2DModel) -> FluxPipeline:
        pipeline = FluxPipeline(
            scheduler=self._loader.scheduler(),
            vae=self._loader.vae(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def _draw_one(self, pipeline: FluxPipeline, text: CachedText, check_stop: Callable[[], None]) -> Image.Image:
        size, device = self._parameters.resolution, self._loader.device

        def on_step_end(*_: object) -> dict[str, torch.Tensor]:
            check_stop()
            return {}

        packed = pipeline(
            prompt_embeds=text.tokens[None].to(device),
            pooled_prompt_embeds=text.pooled[None].to(device),
            height=size,
            width=size,
            num_inference_steps=self._parameters.validation_inference_steps,
            generator=torch.Generator().manual_seed(self._parameters.seed),
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images
        # The pipeline would decode in the transformer's type, which may not be the autoencoder's.
        latents = pipeline._unpack_latents(packed, size, size, pipeline.vae_scale_factor)  # noqa: SLF001 # no public twin
        pixels = decode_latents(pipeline.vae, latents)
        image: Image.Image = pipeline.image_processor.postprocess(pixels)[0]
        return image
