"""The loss, against computations of its own from the equations."""

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel

from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.batches import Batch, join_batches
from training_worker.engines.diffusers.losses import flow_losses

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def transformer(tiny_model: object) -> FluxTransformer2DModel:
    """The tiny model's transformer."""
    return FluxTransformer2DModel.from_pretrained(tiny_model, subfolder="transformer")


def draw_batch(size: int, seed: int = 0) -> Batch:
    """Draw samples of 4 x 6 latents and 5 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        latents=torch.randn(size, 16, 4, 6, generator=generator),
        noise=torch.randn(size, 16, 4, 6, generator=generator),
        sigmas=torch.rand(size, generator=generator),
        tokens=torch.randn(size, 5, 32, generator=generator),
        pooled=torch.randn(size, 32, generator=generator),
    )


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Turn 2 x 2 squares into tokens, one number after another."""
    size, channels, height, width = latents.shape
    packed = torch.empty(size, height // 2 * width // 2, channels * 4, dtype=latents.dtype)
    for y in range(height):
        for x in range(width):
            token, corner = y // 2 * (width // 2) + x // 2, y % 2 * 2 + x % 2
            packed[:, token, corner::4] = latents[:, :, y, x]
    return packed


def test_the_loss_is_that_of_the_equations(transformer: FluxTransformer2DModel) -> None:
    """Rectified flow with a noise level for each sample, in float64 and with its own packing."""
    batch = draw_batch(3)
    exact = copy.deepcopy(transformer).double()
    expected = []
    for i in range(3):
        x0, noise, sigma = batch.latents[i].double(), batch.noise[i].double(), batch.sigmas[i].double()
        velocity = exact(
            hidden_states=pack(((1 - sigma) * x0 + sigma * noise)[None]),
            timestep=sigma[None],
            guidance=torch.tensor([1.5], dtype=torch.float64),
            pooled_projections=batch.pooled[i : i + 1].double(),
            encoder_hidden_states=batch.tokens[i : i + 1].double(),
            txt_ids=torch.zeros(5, 3),
            img_ids=torch.tensor([[0.0, y, x] for y in range(2) for x in range(3)]),
        ).sample
        expected.append(((velocity - pack((noise - x0)[None])) ** 2).mean())

    torch.testing.assert_close(flow_losses(transformer, batch, 1.5).double(), torch.stack(expected), rtol=1e-5, atol=0)


def test_the_guidance_matters_to_a_distilled_model(transformer: FluxTransformer2DModel) -> None:
    """FLUX.1-dev embeds it beside the noise level."""
    batch = draw_batch(1)

    assert not torch.equal(flow_losses(transformer, batch, 1.0), flow_losses(transformer, batch, 2.0))


def test_a_model_without_guidance_is_given_none() -> None:
    """FLUX.1-schnell would not know what to do with it."""
    torch.manual_seed(0)
    schnell = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    batch = draw_batch(1)

    assert torch.equal(flow_losses(schnell, batch, 1.0), flow_losses(schnell, batch, 2.0))


def test_a_batch_is_as_good_as_its_samples_one_by_one(
    transformer: FluxTransformer2DModel, parameters: FluxLoraParameters
) -> None:
    """The gradients of a batch's mean loss are the means of its samples' gradients."""
    samples = [draw_batch(1, seed) for seed in range(4)]

    def gradients(batches: list[Batch]) -> list[torch.Tensor]:
        transformer.zero_grad()
        for batch in batches:
            (flow_losses(transformer, batch, 1.0).mean() / len(batches)).backward()  # type: ignore[no-untyped-call]
        return [weight.grad.clone() for weight in transformer.parameters()]

    torch.testing.assert_close(gradients([join_batches(samples)]), gradients(samples), rtol=1e-4, atol=1e-6)
