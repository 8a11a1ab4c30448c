"""A tiny SDXL pipeline, built in memory, and what it predicts."""

import torch
from diffusers import StableDiffusionXLPipeline

from training_schemas.jobs import ModelFamily
from training_worker.engines.diffusers.models import tiny

WIDTH_L, WIDTH_G = tiny.WIDTH, tiny.WIDTH_2


def build_pipeline() -> StableDiffusionXLPipeline:
    """Build the pipeline, always the same."""
    return tiny.build_pipeline(ModelFamily.SDXL)


@torch.no_grad()
def predict_noise(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    """Predict the noise of something, always the same, by a prompt that both text encoders read."""
    generator = torch.Generator().manual_seed(0)
    tokens, _, pooled, _ = pipeline.encode_prompt("a robot", device="cpu", do_classifier_free_guidance=False)
    prediction: torch.Tensor = pipeline.unet(
        torch.randn(1, 4, 16, 16, generator=generator),
        500,
        encoder_hidden_states=tokens,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])},
        return_dict=False,
    )[0]
    return prediction
