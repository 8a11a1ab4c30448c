"""Rectified flow: how far the model's prediction is off.

Formulas as in Liu et al. 2022 (arXiv:2209.03003) and Esser et al. 2024 (arXiv:2403.03206), with time called sigma.
"""

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from training_worker.engines.diffusers.batches import Batch


def flow_losses(transformer: FluxTransformer2DModel, batch: Batch, guidance_scale: float) -> torch.Tensor:
    """Compute the mean squared error of each sample (batch), in float32.

    The model sees ``(1 - sigma) * latents + sigma * noise`` and should predict the velocity ``noise - latents``.
    """
    sigmas = batch.sigmas[:, None, None, None]
    noised = (1 - sigmas) * batch.latents + sigmas * batch.noise
    velocity = predict_velocity(transformer, noised, batch, guidance_scale)
    target = _pack(batch.noise - batch.latents)
    return (velocity.float() - target).square().mean(dim=(1, 2))


def predict_velocity(
    transformer: FluxTransformer2DModel, noised: torch.Tensor, batch: Batch, guidance_scale: float
) -> torch.Tensor:
    """Predict the velocity of noised latents (batch, channels, height, width), packed as `FluxPipeline` packs them.

    Each 2 x 2 square of latents is one token: (batch, height / 2 * width / 2, 4 * channels). The guidance is only
    embedded by models that were distilled with it, such as FLUX.1-dev.
    """
    size, _, height, width = noised.shape
    device, dtype = noised.device, transformer.dtype
    guidance = torch.full((size,), guidance_scale, device=device) if transformer.config.guidance_embeds else None
    velocity: torch.Tensor = transformer(
        hidden_states=_pack(noised).to(dtype),
        timestep=batch.sigmas,  # in [0, 1]; the model multiplies by 1000 itself
        guidance=guidance,
        pooled_projections=batch.pooled.to(dtype),
        encoder_hidden_states=batch.tokens.to(dtype),
        txt_ids=torch.zeros(batch.tokens.shape[1], 3, device=device),
        img_ids=FluxPipeline._prepare_latent_image_ids(size, height // 2, width // 2, device, torch.float32),  # noqa: SLF001 # no public twin
        return_dict=False,
    )[0]
    return velocity


def _pack(latents: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = FluxPipeline._pack_latents(latents, *latents.shape)  # noqa: SLF001 # no public twin
    return packed
