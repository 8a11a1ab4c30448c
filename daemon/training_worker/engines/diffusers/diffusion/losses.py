"""How far a model's prediction is off, sample by sample.

FLUX learns a rectified flow: formulas as in Liu et al. 2022 (arXiv:2209.03003) and Esser et al. 2024
(arXiv:2403.03206), with time called sigma. SDXL learns to predict the noise of a diffusion (Ho et al. 2020,
arXiv:2006.11239), or its velocity (Salimans and Ho 2022, arXiv:2202.00512).
"""

from functools import lru_cache
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.training_utils import compute_snr

from training_worker.engines.diffusers.diffusion.batches import Batch
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts

VELOCITY = "v_prediction"
LEAST_WEIGHT = 1e-3  # of a mask's sum over a sample, to divide by


def flow_losses(transformer: FluxTransformer2DModel, batch: Batch, texts: Texts, guidance_scale: float) -> torch.Tensor:
    """Compute the mean squared error of each sample (batch), in float32.

    The model sees ``(1 - sigma) * latents + sigma * noise`` and should predict the velocity ``noise - latents``.
    """
    sigmas = batch.levels[:, None, None, None]
    noised = (1 - sigmas) * batch.latents + sigmas * batch.noise
    velocity = predict_velocity(transformer, noised, batch.levels, texts, guidance_scale)
    squares = (velocity.float() - _pack(batch.noise - batch.latents)).square()
    return masked_mean(squares, _pack(batch.masks.expand_as(batch.latents)))


def predict_velocity(
    transformer: FluxTransformer2DModel, noised: torch.Tensor, sigmas: torch.Tensor, texts: Texts, guidance_scale: float
) -> torch.Tensor:
    """Predict the velocity of noised latents (batch, channels, height, width), packed as `FluxPipeline` packs them.

    Each 2 x 2 square of latents is one token: (batch, height / 2 * width / 2, 4 * channels). The guidance is only
    embedded by models that were distilled with it, such as FLUX.1-dev.
    """
    size, _, height, width = noised.shape
    device, dtype = noised.device, _dtype(transformer)
    guidance = torch.full((size,), guidance_scale, device=device) if transformer.config.guidance_embeds else None
    velocity: torch.Tensor = transformer(
        hidden_states=_pack(noised).to(dtype),
        timestep=sigmas,  # in [0, 1]; the model multiplies by 1000 itself
        guidance=guidance,
        pooled_projections=texts.pooled.to(dtype),
        encoder_hidden_states=texts.tokens.to(dtype),
        txt_ids=text_positions(texts.tokens.shape[1], device),
        img_ids=image_positions(height // 2, width // 2, device),
        return_dict=False,
    )[0]
    return velocity


@lru_cache(maxsize=64)
def image_positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """The position (0, row, column) of each token of an image, row by row: always the same tensor of a shape."""
    positions: torch.Tensor = FluxPipeline._prepare_latent_image_ids(1, height, width, device, torch.float32)  # noqa: SLF001 # no public twin
    return positions


@lru_cache(maxsize=64)
def text_positions(tokens: int, device: torch.device) -> torch.Tensor:
    """The position of each token of a text: they have none."""
    return torch.zeros(tokens, 3, device=device)


def diffusion_losses(
    unet: UNet2DConditionModel, schedule: Any, batch: Batch, texts: Texts, min_snr_gamma: float
) -> torch.Tensor:
    """Compute the mean squared error of each sample (batch), in float32, weighed by its signal-to-noise ratio.

    ``schedule`` is a scheduler of diffusers that knows how much noise each of ``batch.levels``, its time steps, means
    and what the model predicts. The weights are those of Hang et al. 2023 (arXiv:2303.09556): ``min(snr, gamma) / snr``
    for noise and ``min(snr, gamma) / (snr + 1)`` for velocity; without gamma all are 1.
    """
    noised = schedule.add_noise(batch.latents, batch.noise, batch.levels)
    prediction = predict_noise(unet, noised, batch, texts)
    velocity = schedule.config.prediction_type == VELOCITY
    target = schedule.get_velocity(batch.latents, batch.noise, batch.levels) if velocity else batch.noise
    losses = masked_mean((prediction.float() - target).square(), batch.masks.expand_as(batch.latents))
    if not min_snr_gamma:
        return losses
    snr: torch.Tensor = compute_snr(schedule, batch.levels)
    return losses * snr.clamp(max=min_snr_gamma) / (snr + 1 if velocity else snr)


def predict_noise(unet: UNet2DConditionModel, noised: torch.Tensor, batch: Batch, texts: Texts) -> torch.Tensor:
    """Predict what the model predicts of noised latents (batch, channels, height, width), in the same shape."""
    dtype = _dtype(unet)
    prediction: torch.Tensor = unet(
        noised.to(dtype),
        batch.levels,
        encoder_hidden_states=texts.tokens.to(dtype),
        added_cond_kwargs={"text_embeds": texts.pooled.to(dtype), "time_ids": batch.sizes.to(dtype)},
        return_dict=False,
    )[0]
    return prediction


def masked_mean(squares: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The mean of each sample (batch), weighed by a mask of the same shape: a small masked part counts as a whole.

    A crop may leave nothing of what a mask shows: its sample teaches nothing.
    """
    dimensions = tuple(range(1, squares.ndim))
    return (squares * masks).sum(dimensions) / masks.sum(dimensions).clamp(min=LEAST_WEIGHT)


def _dtype(denoiser: torch.nn.Module) -> torch.dtype:
    """The type that it computes in; its own ``dtype`` looks through all of its modules for hooks, at each call."""
    return next(denoiser.parameters()).dtype


def _pack(latents: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = FluxPipeline._pack_latents(latents, *latents.shape)  # noqa: SLF001 # no public twin
    return packed
