"""The loss, against computations of its own from the equations."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from msgspec.structs import replace

from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.diffusion.batches import Batch, join_batches
from training_worker.engines.diffusers.diffusion.losses import diffusion_losses, flow_losses, masked_mean
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def transformer(tiny_model: object) -> FluxTransformer2DModel:
    """The tiny model's transformer."""
    return FluxTransformer2DModel.from_pretrained(tiny_model, subfolder="transformer")


@pytest.fixture(scope="module")
def unet(tiny_sdxl: object) -> UNet2DConditionModel:
    """The tiny SDXL's UNet."""
    return UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")


def schedule_of(prediction: str) -> DDPMScheduler:
    """SDXL's table of noise, for a model that predicts noise or velocity."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction)


def draw_batch(size: int, seed: int = 0) -> Batch:
    """Draw samples of 4 x 6 latents and 5 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        latents=torch.randn(size, 16, 4, 6, generator=generator),
        noise=torch.randn(size, 16, 4, 6, generator=generator),
        levels=torch.rand(size, generator=generator),
        masks=torch.ones(size, 1, 4, 6),
        sizes=torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(size, 6),
        captions=[""] * size,
    )


def draw_texts(size: int, seed: int = 0, width: int = 32, pooled: int = 32) -> Texts:
    """Draw texts of 5 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return Texts(
        tokens=torch.randn(size, 5, width, generator=generator), pooled=torch.randn(size, pooled, generator=generator)
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
    batch, texts = draw_batch(3), draw_texts(3)
    exact = copy.deepcopy(transformer).double()
    expected = []
    for i in range(3):
        x0, noise, sigma = batch.latents[i].double(), batch.noise[i].double(), batch.levels[i].double()
        velocity = exact(
            hidden_states=pack(((1 - sigma) * x0 + sigma * noise)[None]),
            timestep=sigma[None],
            guidance=torch.tensor([1.5], dtype=torch.float64),
            pooled_projections=texts.pooled[i : i + 1].double(),
            encoder_hidden_states=texts.tokens[i : i + 1].double(),
            txt_ids=torch.zeros(5, 3),
            img_ids=torch.tensor([[0.0, y, x] for y in range(2) for x in range(3)]),
        ).sample
        expected.append(((velocity - pack((noise - x0)[None])) ** 2).mean())

    torch.testing.assert_close(
        flow_losses(transformer, batch, texts, 1.5).double(), torch.stack(expected), rtol=1e-5, atol=0
    )


def test_the_guidance_matters_to_a_distilled_model(transformer: FluxTransformer2DModel) -> None:
    """FLUX.1-dev embeds it beside the noise level."""
    batch, texts = draw_batch(1), draw_texts(1)

    assert not torch.equal(flow_losses(transformer, batch, texts, 1.0), flow_losses(transformer, batch, texts, 2.0))


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
    batch, texts = draw_batch(1), draw_texts(1)

    assert torch.equal(flow_losses(schnell, batch, texts, 1.0), flow_losses(schnell, batch, texts, 2.0))


def test_a_batch_is_as_good_as_its_samples_one_by_one(
    transformer: FluxTransformer2DModel, parameters: FluxLoraParameters
) -> None:
    """The gradients of a batch's mean loss are the means of its samples' gradients."""
    samples = [(draw_batch(1, seed), draw_texts(1, seed)) for seed in range(4)]
    texts = [text for _, text in samples]
    joined = Texts(tokens=torch.cat([one.tokens for one in texts]), pooled=torch.cat([one.pooled for one in texts]))

    def gradients(batches: list[tuple[Batch, Texts]]) -> list[torch.Tensor]:
        transformer.zero_grad()
        for batch, texts in batches:
            (flow_losses(transformer, batch, texts, 1.0).mean() / len(batches)).backward()  # type: ignore[no-untyped-call]
        return [weight.grad.clone() for weight in transformer.parameters()]

    torch.testing.assert_close(
        gradients([(join_batches([batch for batch, _ in samples]), joined)]), gradients(samples), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_the_diffusion_loss_is_that_of_the_equations(unet: UNet2DConditionModel, prediction: str, gamma: float) -> None:
    """Noise by the cumulative product of 1 - beta, and the weights of Min-SNR, in float64."""
    levels = torch.tensor([20, 400, 900])
    batch = draw_batch(3)
    batch = replace(
        batch,
        latents=batch.latents[:, :4, :4, :4],
        noise=batch.noise[:, :4, :4, :4],
        levels=levels,
        masks=batch.masks[..., :4],
    )
    texts = draw_texts(3, width=80, pooled=48)
    exact = copy.deepcopy(unet).double()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    expected = []
    for i, level in enumerate(levels.tolist()):
        x0, noise, alpha = batch.latents[i].double(), batch.noise[i].double(), kept[level]
        predicted = exact(
            (alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise)[None],
            level,
            encoder_hidden_states=texts.tokens[i : i + 1].double(),
            added_cond_kwargs={"text_embeds": texts.pooled[i : i + 1].double(), "time_ids": batch.sizes[i : i + 1]},
        ).sample[0]
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x0
        loss = ((predicted - (noise if prediction == "epsilon" else velocity)) ** 2).mean()
        snr = alpha / (1 - alpha)
        if gamma:
            loss = loss * min(float(snr), gamma) / (snr if prediction == "epsilon" else snr + 1)
        expected.append(loss)

    losses = diffusion_losses(unet, schedule_of(prediction), batch, texts, gamma)

    torch.testing.assert_close(losses.double(), torch.stack(expected), rtol=1e-4, atol=0)


def test_what_a_mask_hides_does_not_count() -> None:
    """And a small part that counts does so as a whole image does."""
    squares = torch.tensor([[4.0, 4.0, 100.0, 100.0], [4.0, 4.0, 4.0, 4.0]])
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])

    assert [4.0, 4.0] == masked_mean(squares, masks).tolist()
    assert [0.0, 0.0] == masked_mean(squares, torch.zeros(2, 4)).tolist()


def test_a_mask_hides_the_same_place_of_packed_latents(transformer: FluxTransformer2DModel) -> None:
    """The loss with a mask is that over the latents which it leaves, one by one."""
    batch, texts = draw_batch(1), draw_texts(1)
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., :2, :2] = 1
    whole = flow_losses(transformer, batch, texts, 1.0)
    parts = []
    for y in range(0, 4, 2):
        for x in range(0, 6, 2):
            one = torch.zeros(1, 1, 4, 6)
            one[..., y : y + 2, x : x + 2] = 1
            parts.append(flow_losses(transformer, replace(batch, masks=one), texts, 1.0))

    torch.testing.assert_close(torch.stack(parts).mean(0), whole)
    torch.testing.assert_close(parts[0], flow_losses(transformer, replace(batch, masks=mask), texts, 1.0))
