"""The base model, as the libraries of invoke-training need it."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    FailureReason,
)
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.invoke.model import check_model

pytestmark = pytest.mark.trainer

FLUX = TrainingType.FLUX_LORA
SDXL = TrainingType.SDXL_LORA


def test_a_published_model_is_fit(tiny_model: Path, tiny_sdxl: Path) -> None:
    """Of its own family."""
    check_model(tiny_model, FLUX)
    check_model(tiny_sdxl, SDXL)
    with pytest.raises(TrainingFailure, match="a FluxPipeline, which SDXL_LORA cannot be trained on"):
        check_model(tiny_model, SDXL)
    with pytest.raises(TrainingFailure) as caught:
        check_model(tiny_model / "nowhere", SDXL)
    assert FailureReason.MODEL_MISSING == caught.value.reason


def test_what_transformers_4_would_read_wrongly_is_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    """It fills weights that it does not know by name with random numbers, and does not warn."""
    model = tmp_path / "model"
    shutil.copytree(tiny_sdxl, model)
    file = model / "text_encoder/model.safetensors"
    save_file({name.removeprefix("text_model."): weight for name, weight in load_file(file).items()}, file)
    (model / "tokenizer_2/merges.txt").unlink()
    (model / "vae/diffusion_pytorch_model.safetensors").rename(model / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(TrainingFailure) as caught:
        check_model(model, SDXL)

    assert FailureReason.MODEL_INVALID == caught.value.reason
    assert [str(model / name) for name in ("vae", "text_encoder", "tokenizer_2/merges.txt")] == [
        fault.path for fault in caught.value.faults
    ]


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{"])
def test_files_that_are_no_weights_are_refused(tiny_model: Path, tmp_path: Path, content: bytes) -> None:
    """Without reading what they give as their header's length."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "text_encoder/model.safetensors").write_bytes(content)
    with pytest.raises(TrainingFailure) as caught:
        check_model(model, FLUX)
    assert FailureReason.MODEL_INVALID == caught.value.reason
