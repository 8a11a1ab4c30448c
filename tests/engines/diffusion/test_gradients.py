"""The gradients of a step, key by key, against a backward pass of its own in float64.

The other side has no adapter of peft, no batch of ours and no loss of ours: the plain model, a low-rank term added to
the outputs of its layers, and the published equations.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from msgspec.structs import replace
from tests.engines.conftest import PARAMETERS, SDXL_PARAMETERS
from tests.engines.diffusion.test_losses import pack
from tests.engines.trainers import BuildTrainer, never

from training_schemas.jobs import TrainingType
from training_schemas.spec import LoraTargets
from training_worker.engines.diffusers.diffusion.batches import Batch
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts
from training_worker.engines.diffusers.training.trainer import Trainer

pytestmark = pytest.mark.trainer

GAMMA = 5.0
Weights = dict[str, torch.Tensor]
Loss = Callable[[torch.nn.Module, Batch, Texts], torch.Tensor]


def flow_loss(model: torch.nn.Module, batch: Batch, texts: Texts) -> torch.Tensor:
    """Rectified flow (arXiv:2403.03206), one sample after the other."""
    height, width = batch.latents.shape[-2:]
    places = torch.tensor([[0.0, y, x] for y in range(height // 2) for x in range(width // 2)])
    losses = []
    for i, sigma in enumerate(batch.levels.double()):
        x0, noise = batch.latents[i].double(), batch.noise[i].double()
        velocity = model(
            hidden_states=pack(((1 - sigma) * x0 + sigma * noise)[None]),
            timestep=sigma[None],
            guidance=torch.tensor([1.0], dtype=torch.float64),
            pooled_projections=texts.pooled[i : i + 1].double(),
            encoder_hidden_states=texts.tokens[i : i + 1].double(),
            txt_ids=torch.zeros(texts.tokens.shape[1], 3),
            img_ids=places,
        ).sample
        losses.append(((velocity - pack((noise - x0)[None])) ** 2).mean())
    return torch.stack(losses).mean()


def noise_loss(model: torch.nn.Module, batch: Batch, texts: Texts) -> torch.Tensor:
    """Predicted noise (arXiv:2006.11239) with Min-SNR weights (arXiv:2303.09556), one sample after the other."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    losses = []
    for i, level in enumerate(batch.levels.tolist()):
        x0, noise, alpha = batch.latents[i].double(), batch.noise[i].double(), kept[int(level)]
        predicted = model(
            (alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise)[None],
            int(level),
            encoder_hidden_states=texts.tokens[i : i + 1].double(),
            added_cond_kwargs={
                "text_embeds": texts.pooled[i : i + 1].double(),
                "time_ids": batch.sizes[i : i + 1].double(),
            },
        ).sample[0]
        snr = float(alpha / (1 - alpha))
        losses.append(((predicted - noise) ** 2).mean() * min(snr, GAMMA) / snr)
    return torch.stack(losses).mean()


PLAIN: dict[TrainingType, tuple[str, Any, Loss]] = {
    TrainingType.FLUX_LORA: ("transformer", FluxTransformer2DModel, flow_loss),
    TrainingType.SDXL_LORA: ("unet", UNet2DConditionModel, noise_loss),
}


def stir(trainer: Trainer) -> Weights:
    """Give the adapter any values, since those that it starts with leave half of the gradients at zero; copies them."""
    generator = torch.Generator().manual_seed(3)
    weights = trainer.pipeline.weights()
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return {name: weight.detach().double() for name, weight in weights.items()}


def with_low_rank_terms(model: torch.nn.Module, weights: Weights, part: str) -> Weights:
    """Add B A x to the output of each layer that has an A and a B; alpha is the rank, so that nothing scales it."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    for name, down in leaves.items():
        layer, _, rest = name.partition(".lora_A")
        if rest:
            up = leaves[f"{layer}.lora_B{rest}"]
            module = model.get_submodule(layer.removeprefix(f"{part}."))
            module.register_forward_hook(lambda _, inputs, output, down=down, up=up: output + inputs[0] @ down.T @ up.T)
    return leaves


@pytest.mark.parametrize("training_type", [TrainingType.FLUX_LORA, TrainingType.SDXL_LORA])
def test_a_steps_gradients_are_those_of_the_equations(build: BuildTrainer, training_type: TrainingType) -> None:
    """Of every matrix of the adapter, over two micro-batches of two samples."""
    flux = training_type is TrainingType.FLUX_LORA
    part, kind, loss = PLAIN[training_type]
    settings = replace(
        PARAMETERS if flux else SDXL_PARAMETERS,
        gradient_accumulation_steps=2,
        lora_targets=LoraTargets.ALL_LINEAR,
    )
    trainer = build(settings, training_type)
    weights = stir(trainer)
    before = trainer.batches.state()
    drawn = [trainer.batches.draw(samples).to(torch.device("cpu")) for samples in trainer.batches.next_step()]
    trainer.batches.restore(before)

    found = trainer.accumulate(1, never).item()

    plain = kind.from_pretrained(trainer.pipeline.loader.folder, subfolder=part).double()
    leaves = with_low_rank_terms(plain, weights, part)
    expected = torch.stack([loss(plain, batch, trainer.texts.embed(batch.captions)) for batch in drawn]).mean()
    expected.backward()  # type: ignore[no-untyped-call]
    assert found == pytest.approx(expected.item(), rel=1e-5)
    gradients = {
        f"{part}.{name.replace('.default', '')}": weight.grad
        for name, weight in trainer.pipeline.denoiser.named_parameters()
        if weight.requires_grad
    }
    assert gradients.keys() == leaves.keys()
    # Where an image is down to one place, attention to itself has nothing to choose from.
    assert sum(bool(leaf.grad is not None and leaf.grad.any()) for leaf in leaves.values()) > 0.8 * len(leaves)
    # A gradient that is zero in exact arithmetic is rounding noise in both: what counts is the scale of the whole step.
    scale = max(float(leaf.grad.abs().max()) for leaf in leaves.values() if leaf.grad is not None)
    for name, leaf in leaves.items():
        gradient, exact = gradients[name], leaf.grad
        assert gradient is not None, name
        assert exact is not None, name
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-6 * scale)
