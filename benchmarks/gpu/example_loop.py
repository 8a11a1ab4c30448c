"""Steps as diffusers' example scripts for LoRAs take them: peft's layers in an autocast, and diffusers' own functions.

After ``train_dreambooth_lora_flux.py`` and ``train_text_to_image_lora_sdxl.py`` with bf16 mixed precision, their
latents and embeddings made beforehand as in ours. The attention kernel is whichever torch may use in this process, as
in ours.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.training_utils import (
    cast_training_params,
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from peft import LoraConfig

from benchmarks.gpu.cases import Case
from training_schemas.jobs import ModelFamily

TARGETS = {
    ModelFamily.FLUX: [
        "attn.to_k",
        "attn.to_q",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    ],
    ModelFamily.SDXL: ["to_k", "to_q", "to_v", "to_out.0"],
}
GUIDANCE = 1.0
Inputs = dict[str, torch.Tensor]


class ExampleLoop:
    """The loop's state: the model with its adapter, and the optimizer.

    Args:
        denoiser: The base model, on its device; an adapter is put into it.
        case: What is trained.
        inputs: ``latents`` (1, channels, side, side), ``tokens`` (1, length, width) and ``pooled`` (1, width).
    """

    def __init__(self, denoiser: Any, case: Case, inputs: Inputs) -> None:
        self._model = denoiser
        self._case = case
        self._inputs = inputs
        self._device = next(denoiser.parameters()).device
        config = LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=TARGETS[case.family])
        denoiser.add_adapter(config)
        # Base layers in fewer bits make peft's adapters in their own type: the scripts for those cast them, too.
        cast_training_params(denoiser, dtype=torch.float32)
        if case.checkpointing:
            denoiser.enable_gradient_checkpointing()
        else:
            denoiser.disable_gradient_checkpointing()
        self._weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
        self._optimizer = self._make_optimizer()
        self._loss: Callable[[Inputs], torch.Tensor] = (
            self._flux_loss if case.family is ModelFamily.FLUX else self._sdxl_loss
        )
        self._flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self._noise = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)

    def step(self) -> float:
        """Take one optimizer step and return its mean loss."""
        total = 0.0
        for _ in range(self._case.accumulation):
            with torch.autocast(self._device.type, dtype=torch.bfloat16):
                loss = self._loss(self._batch())
            torch.autograd.backward(loss / self._case.accumulation)
            # accelerate gathers the loss of each micro-batch for its log.
            total += loss.item() / self._case.accumulation
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def remove(self) -> None:
        """Take the adapter out again, for the next loop over the same base."""
        self._model.delete_adapters("default")
        for weight in self._model.parameters():
            weight.requires_grad_(requires_grad=False)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        if self._case.optimizer == "adamw8bit":
            import bitsandbytes  # noqa: PLC0415 - it takes a second

            eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(self._weights, lr=1e-4)
            return eight_bit
        return torch.optim.AdamW(self._weights, lr=1e-4)

    def _batch(self) -> Inputs:
        size = self._case.batch_size
        return {name: tensor.expand(size, *tensor.shape[1:]) for name, tensor in self._inputs.items()}

    def _flux_loss(self, inputs: Inputs) -> torch.Tensor:
        latents, size = inputs["latents"].to(torch.bfloat16), self._case.batch_size
        noise = torch.randn_like(latents)
        u = compute_density_for_timestep_sampling("none", size)
        timesteps = self._flow.timesteps[(u * self._flow.config.num_train_timesteps).long()].to(self._device)
        sigmas = self._sigmas(timesteps, latents)
        noised = (1.0 - sigmas) * latents + sigmas * noise
        _, channels, height, width = latents.shape
        guidance = torch.tensor([GUIDANCE], device=self._device).expand(size) if self._guided else None
        prediction = self._model(
            hidden_states=FluxPipeline._pack_latents(noised, size, channels, height, width),  # noqa: SLF001 # as the script
            timestep=timesteps / 1000,
            guidance=guidance,
            pooled_projections=inputs["pooled"],
            encoder_hidden_states=inputs["tokens"],
            txt_ids=torch.zeros(inputs["tokens"].shape[1], 3, device=self._device, dtype=torch.bfloat16),
            img_ids=FluxPipeline._prepare_latent_image_ids(  # noqa: SLF001 # as the script
                size, height // 2, width // 2, self._device, torch.bfloat16
            ),
            return_dict=False,
        )[0]
        prediction = FluxPipeline._unpack_latents(prediction, height * 8, width * 8, 8)  # noqa: SLF001 # as the script
        weighting = compute_loss_weighting_for_sd3("none", sigmas)
        target = noise - latents
        squares = weighting.float() * (prediction.float() - target.float()) ** 2
        loss: torch.Tensor = squares.reshape(size, -1).mean(1).mean()
        return loss

    @property
    def _guided(self) -> bool:
        return bool(self._model.config.guidance_embeds)

    def _sigmas(self, timesteps: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        schedule = self._flow.timesteps.to(self._device)
        sigmas = self._flow.sigmas.to(device=self._device, dtype=latents.dtype)
        places = [int((schedule == timestep).nonzero().item()) for timestep in timesteps]
        found: torch.Tensor = sigmas[places].reshape(-1, 1, 1, 1)
        return found

    def _sdxl_loss(self, inputs: Inputs) -> torch.Tensor:
        latents, size = inputs["latents"].to(torch.bfloat16), self._case.batch_size
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self._noise.config.num_train_timesteps, (size,), device=self._device)
        noised = self._noise.add_noise(latents, noise, timesteps)
        side = self._case.resolution
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=self._device, dtype=torch.bfloat16)
        conditions = {"time_ids": sizes.expand(size, 6), "text_embeds": inputs["pooled"]}
        prediction = self._model(noised, timesteps, inputs["tokens"], added_cond_kwargs=conditions, return_dict=False)[
            0
        ]
        loss: torch.Tensor = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        return loss
