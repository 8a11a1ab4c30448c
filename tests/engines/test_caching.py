"""What is computed once before training."""

from pathlib import Path

import msgspec
import pytest
import torch

from training_schemas.spec import FluxLoraParameters, WeightDtype
from training_worker.engines.diffusers.caching import cache_images, cache_texts, decode_latents, encode_image
from training_worker.engines.diffusers.data import find_images, read_dataset
from training_worker.engines.diffusers.models import ModelLoader

pytestmark = pytest.mark.trainer


def never() -> None:
    """Nobody asks to stop."""


@pytest.fixture
def loader(tiny_model: Path) -> ModelLoader:
    """Loads parts of the tiny model."""
    return ModelLoader(tiny_model, WeightDtype.FLOAT32, "cpu")


def test_latents_are_shifted_and_scaled(loader: ModelLoader) -> None:
    """The transformer works on (latents - shift) * scale; FLUX's figures are 0.1159 and 0.3611."""
    vae = loader.vae()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist

    cached = encode_image(vae, pixels)

    torch.testing.assert_close((latents.mean[0] - 0.1159) * 0.3611, cached.mean)
    torch.testing.assert_close(latents.std[0] * 0.3611, cached.std)


def test_decoding_undoes_the_shift_and_the_scale(loader: ModelLoader) -> None:
    """Latents in the transformer's scale come out as the autoencoder alone would decode them."""
    vae = loader.vae()
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(latents).sample, decode_latents(vae, (latents - 0.1159) * 0.3611))


def test_images_are_cached_at_the_resolution_asked_for(loader: ModelLoader, robots: Path) -> None:
    """An eighth of it, in 16 channels."""
    dataset = read_dataset(robots, find_images(robots), never)[:2]

    assert [(16, 12, 12)] * 2 == [image.mean.shape for image in cache_images(loader.vae(), dataset, 96, never)]


def test_each_text_is_encoded_once(loader: ModelLoader, parameters: FluxLoraParameters) -> None:
    """Many data sets have one caption for all images."""
    cache = cache_texts(loader.text_encoders(), ["a robot", "a house", "a robot"], parameters, never)

    assert ["a robot", "a house"] == list(cache)
    assert (64, 32) == cache["a robot"].tokens.shape
    assert (32,) == cache["a robot"].pooled.shape
    assert not torch.equal(cache["a robot"].pooled, cache["a house"].pooled)


def test_texts_are_cut_to_the_lengths_that_are_allowed(loader: ModelLoader, parameters: FluxLoraParameters) -> None:
    """What comes after that many tokens of CLIP and of T5 makes no difference."""
    short = msgspec.structs.replace(parameters, clip_tokenizer_max_length=8, t5_tokenizer_max_length=8)
    encoders = loader.text_encoders()
    cache = cache_texts(encoders, ["a robot of iron", "a robot of gold"], short, never)

    assert (8, 32) == cache["a robot of iron"].tokens.shape
    torch.testing.assert_close(cache["a robot of iron"].tokens, cache["a robot of gold"].tokens)
    torch.testing.assert_close(cache["a robot of iron"].pooled, cache["a robot of gold"].pooled)
