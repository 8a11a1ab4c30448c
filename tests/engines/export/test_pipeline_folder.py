"""A fine-tuned model as others will load it."""

import filecmp
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from tests.engines import sdxl

from training_worker.engines.diffusers.export.pipeline_folder import write_finetuned

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, with what else such folders hold; not to be changed."""
    folder = tmp_path_factory.mktemp("sdxl")
    sdxl.build_pipeline().save_pretrained(folder, safe_serialization=True)
    for name in ("sd_xl_base_1.0.safetensors", "vae/model.onnx", "vae/diffusion_pytorch_model.fp16.safetensors"):
        (folder / name).write_bytes(b"not to be copied")
    (folder / "vae_1_0").mkdir()
    (folder / "vae_1_0" / "config.json").write_bytes(b"{}")
    return folder


def trained_pipeline() -> StableDiffusionXLPipeline:
    """Build a pipeline whose UNet and first text encoder are others than those of the base."""
    pipeline = sdxl.build_pipeline()
    for model in (pipeline.unet, pipeline.text_encoder):
        for parameter in model.parameters():
            parameter.data *= 1.1
    return pipeline


def test_the_folder_loads_and_predicts_what_the_model_did_in_training(tmp_path: Path, base: Path) -> None:
    """With the trained text encoder, and the other as it was."""
    trained = trained_pipeline()
    write_finetuned(base, {"unet": trained.unet, "text_encoder": trained.text_encoder}, tmp_path / "model")

    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model", use_safetensors=True)

    before = sdxl.predict_noise(StableDiffusionXLPipeline.from_pretrained(base, use_safetensors=True))
    assert (sdxl.predict_noise(trained) - before).abs().max() > 1e-2
    torch.testing.assert_close(sdxl.predict_noise(trained), sdxl.predict_noise(pipeline), rtol=0, atol=1e-5)


def test_what_was_not_trained_is_copied_and_nothing_else(tmp_path: Path, base: Path) -> None:
    """A folder may hold the model several times over."""
    files = write_finetuned(base, {"unet": trained_pipeline().unet}, tmp_path / "model")

    names = {file.relative_to(tmp_path / "model").as_posix() for file in files}
    everything = {file.relative_to(base).as_posix() for file in base.rglob("*") if file.is_file()}
    assert everything - names == {
        "sd_xl_base_1.0.safetensors",
        "vae/model.onnx",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae_1_0/config.json",
    }
    assert set() == names - everything
    changed = {name for name in names if not filecmp.cmp(base / name, tmp_path / "model" / name, shallow=False)}
    assert {"unet/diffusion_pytorch_model.safetensors"} == changed - {"unet/config.json"}
    assert {0o644} == {file.stat().st_mode & 0o777 for file in files}


def test_a_part_that_the_pipeline_does_not_have_is_reported(tmp_path: Path, base: Path) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match="has no part transformer"):
        write_finetuned(base, {"transformer": trained_pipeline().unet}, tmp_path / "model")

    assert [] == list(tmp_path.iterdir())
