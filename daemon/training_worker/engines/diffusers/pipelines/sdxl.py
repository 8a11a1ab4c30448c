"""What all types of training of SDXL have in common: how it reads, how it is noised, and what it is taught."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline

from training_schemas.spec import Execution, SdxlParameters
from training_worker.engines.diffusers.diffusion.batches import Batch, Noising
from training_worker.engines.diffusers.diffusion.losses import diffusion_losses
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts
from training_worker.engines.diffusers.models.families import SDXL
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline

CLIP_LENGTH = 77
ENCODERS = ("text_encoder", "text_encoder_2")


class SdxlPipeline(TrainingPipeline[SdxlParameters]):
    """SDXL as a diffusion of a thousand steps."""

    family = SDXL

    def __init__(self, loader: ModelLoader, parameters: SdxlParameters, execution: Execution | None = None) -> None:
        super().__init__(loader, parameters, execution)
        # With the model's own table of noise, whatever scheduler it draws with.
        self.schedule = loader.scheduler(DDPMScheduler)

    @property
    def noising(self) -> Noising:
        """By a time step for each sample; noise may have an offset for each channel."""
        steps, offset = self.schedule.config.num_train_timesteps, self.parameters.noise_offset

        def draw_level(generator: torch.Generator, _: torch.Size) -> torch.Tensor:
            return torch.randint(steps, (), generator=generator)

        def draw_noise(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
            noise = torch.randn(shape, generator=generator)
            # https://www.crosslabs.org/blog/diffusion-with-offset-noise: without it the mean of an image hardly learns.
            return noise + offset * torch.randn(shape[0], 1, 1, generator=generator) if offset else noise

        def fixed_level(share: float) -> torch.Tensor:
            return torch.tensor(round(share * (steps - 1)))

        return Noising(draw_level=draw_level, draw_noise=draw_noise, fixed_level=fixed_level)

    @property
    def text_lengths(self) -> Sequence[int]:
        """Of both CLIPs."""
        return CLIP_LENGTH, CLIP_LENGTH

    def embed(self, texts: Sequence[str]) -> Texts:
        """Embed texts by both encoders' layer before the last, and by the second as a whole."""
        tokens, _, pooled, _ = self.encoders.encode_prompt(list(texts), do_classifier_free_guidance=False)
        return Texts(tokens=tokens, pooled=pooled)

    def losses(self, batch: Batch, texts: Texts) -> torch.Tensor:
        """Compute the diffusion's loss of each sample (batch)."""
        return diffusion_losses(self.denoiser, self.schedule, batch, texts, self.parameters.min_snr_gamma)

    def drawing(self, vae: Any) -> Any:
        """SDXL's own pipeline."""
        return StableDiffusionXLPipeline(
            scheduler=self.loader.scheduler(EulerDiscreteScheduler),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            unet=self.denoiser,
            add_watermarker=False,
        )

    def prompt_arguments(self, prompt: str, embed: Callable[[str], Texts]) -> dict[str, torch.Tensor]:
        """A prompt, and the empty one that it is guided away from."""
        nothing = embed("")
        return {
            **super().prompt_arguments(prompt, embed),
            "negative_prompt_embeds": nothing.tokens,
            "negative_pooled_prompt_embeds": nothing.pooled,
        }

    def unpacked(self, drawn: torch.Tensor, _height: int, _width: int) -> torch.Tensor:
        """They are what they should be."""
        return drawn
