"""Images as latents: encoded once, or whenever they are drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import asdict
from PIL import Image

from training_schemas.spec import WeightDtype
from training_worker.engines.common.data.digests import digest_of
from training_worker.engines.common.data.examples import Example
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache
from training_worker.engines.diffusers.diffusion.latents import CachedImages, LiveImages, decode_latents, encode_image
from training_worker.engines.diffusers.models.families import FLUX, SDXL
from training_worker.engines.diffusers.models.loader import ModelLoader

pytestmark = pytest.mark.trainer

LIMIT = 2**30


def never() -> None:
    """Nobody asks to stop."""


@pytest.fixture
def loader(tiny_model: Path) -> ModelLoader:
    """Loads parts of the tiny model."""
    return ModelLoader(tiny_model, FLUX, WeightDtype.FLOAT32, "cpu")


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """An image of 96 x 64 pixels, dark on its left, trained as a square; its left half counts."""
    grey = np.tile(np.linspace(0, 255, 96, dtype=np.uint8), (64, 1))
    Image.fromarray(grey).convert("RGB").save(tmp_path / "a.png")
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[:, :48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return Example(
        image=tmp_path / "a.png",
        caption="a",
        mask=tmp_path / "mask.png",
        repeats=1,
        width=96,
        height=64,
        bucket=(64, 64),
        digest=digest_of(tmp_path / "a.png"),
        mask_digest=digest_of(tmp_path / "mask.png"),
    )


def test_flux_latents_are_shifted_and_scaled(loader: ModelLoader) -> None:
    """The transformer works on (latents - shift) * scale; FLUX's figures are 0.1159 and 0.3611."""
    vae = loader.vae()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist

    mean, std = encode_image(vae, pixels)

    torch.testing.assert_close((latents.mean[0] - 0.1159) * 0.3611, mean)
    torch.testing.assert_close(latents.std[0] * 0.3611, std)


def test_sdxl_latents_are_scaled_alone(tiny_sdxl: Path) -> None:
    """Its figure is 0.13025, and it knows no shift."""
    vae = ModelLoader(tiny_sdxl, SDXL, WeightDtype.FLOAT32, "cpu").vae()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean[0]

    torch.testing.assert_close(latents * 0.13025, encode_image(vae, pixels)[0])


def test_decoding_undoes_the_shift_and_the_scale(loader: ModelLoader) -> None:
    """Latents in the transformer's scale come out as the autoencoder alone would decode them."""
    vae = loader.vae()
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(latents).sample, decode_latents(vae, (latents - 0.1159) * 0.3611))


def test_cached_images_are_those_that_are_encoded_again(tmp_path: Path, loader: ModelLoader, example: Example) -> None:
    """With mask and sizes; and once cached, no autoencoder is needed."""
    vae, generator = loader.vae(), torch.Generator()
    with TensorCache(tmp_path / "cache", LIMIT) as cache:
        cached = CachedImages(cache, [example], "model", flips=False)
        before = cached.complete
        cached.encode_all(vae, never)
        assert (False, True) == (before, cached.complete)
        found = cached.draw(0, generator)
    made = LiveImages(vae, [example], crops=False, flips=False).draw(0, generator)

    assert (16, 8, 8) == found.mean.shape
    for name in ("mean", "std", "mask", "sizes"):
        torch.testing.assert_close(getattr(made, name), getattr(found, name), rtol=0, atol=0)


def test_sizes_are_those_that_sdxl_is_given(loader: ModelLoader, example: Example) -> None:
    """Height and width of the original, top and left of the crop, height and width of the target."""
    image = LiveImages(loader.vae(), [example], crops=False, flips=False).fixed(0)

    assert [64, 96, 0, 16, 64, 64] == image.sizes.tolist()


def test_a_mask_is_cropped_like_its_image(loader: ModelLoader, example: Example) -> None:
    """Of the left 48 columns the crop leaves 32, which are 4 latents."""
    image = LiveImages(loader.vae(), [example], crops=False, flips=False).fixed(0)

    assert [1.0] * 4 + [0.0] * 4 == image.mask[0, 3].tolist()


def test_flips_mirror_half_of_the_samples(tmp_path: Path, loader: ModelLoader, example: Example) -> None:
    """Cached ones too: there are two of each image."""
    with TensorCache(tmp_path / "cache", LIMIT) as cache:
        cached = CachedImages(cache, [example], "model", flips=True)
        cached.encode_all(loader.vae(), never)
        generator = torch.Generator().manual_seed(0)
        masks = [cached.draw(0, generator).mask[0, 0].tolist() for _ in range(200)]

    mirrored = masks.count([0.0] * 4 + [1.0] * 4)
    assert 200 == mirrored + masks.count([1.0] * 4 + [0.0] * 4)
    assert 70 < mirrored < 130


def test_random_crops_go_from_edge_to_edge(loader: ModelLoader, example: Example) -> None:
    """SDXL is given their offsets."""
    images = LiveImages(loader.vae(), [example], crops=True, flips=False)
    generator = torch.Generator().manual_seed(0)
    lefts = {int(images.draw(0, generator).sizes[3]) for _ in range(60)}

    assert min(lefts) <= 3
    assert max(lefts) >= 29
    assert len(lefts) > 20


def test_what_stays_on_the_device_is_read_once(tmp_path: Path, loader: ModelLoader, example: Example) -> None:
    """Each image and its mirror image; they are the same as those that are read again."""
    with TensorCache(tmp_path / "cache", LIMIT) as cache:
        read = CachedImages(cache, [example], "model", flips=True)
        read.encode_all(loader.vae(), never)
        kept = CachedImages(cache, [example], "model", flips=True, keep_on=loader.device)
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        for _ in range(20):
            fresh, cached = (images.draw(0, one) for images, one in zip((read, kept), generators, strict=True))
            torch.testing.assert_close(asdict(fresh), asdict(cached), rtol=0, atol=0)

        assert kept.fixed(0) is kept.fixed(0)
        assert read.fixed(0) is not read.fixed(0)
        assert len(kept._kept) == 2


def test_another_model_or_another_mask_is_another_entry(tmp_path: Path, loader: ModelLoader, example: Example) -> None:
    """What was cached for others is not taken."""
    with TensorCache(tmp_path / "cache", LIMIT) as cache:
        CachedImages(cache, [example], "model", flips=False).encode_all(loader.vae(), never)
        Image.new("L", (96, 64), 255).save(tmp_path / "other.png")
        other = replace(example, mask=tmp_path / "other.png", mask_digest=digest_of(tmp_path / "other.png"))

        assert not CachedImages(cache, [other], "model", flips=False).complete
        assert not CachedImages(cache, [example], "other", flips=False).complete
