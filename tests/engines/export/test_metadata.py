"""The description of a result in its file, and that those who load it ignore it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import asdict, replace
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from tests.engines import sdxl

from training_schemas.jobs import TrainingType
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_worker.engines.common.export.kohya import sdxl_to_kohya
from training_worker.engines.common.export.metadata import HASH, write_with_metadata
from training_worker.engines.diffusers.export.metadata import (
    Implementation,
    Result,
    result_metadata,
)

pytestmark = pytest.mark.trainer


@pytest.fixture
def result(parameters: FluxLoraParameters) -> Result:
    """A LoRA for FLUX of rank 4."""
    return Result(
        training_type=TrainingType.FLUX_LORA,
        parameters=parameters,
        title="robots",
        date="2025-03-01T12:00:00Z",
        base_model="FLUX.1-dev",
        dataset_hash="abc",
        step=6,
        worker_version="1.2.3",
    )


@pytest.fixture
def sdxl_result(result: Result) -> Result:
    """A LoRA for SDXL of rank 4."""
    settings: dict[str, Any] = asdict(result.parameters)
    settings |= {"min_snr_gamma": 5.0, "noise_offset": 0.0, "embedding_vectors": 2, "initial_token": ""}
    parameters = SdxlParameters(**{name: settings[name] for name in SdxlParameters.__struct_fields__})
    return replace(result, training_type=TrainingType.SDXL_LORA, parameters=parameters)


def read_metadata(path: Path) -> dict[str, str]:
    """Read a file's metadata."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def test_a_flux_lora_has_metadata_of_what_it_is(result: Result) -> None:
    """By the keys of the standard, of sd-scripts, and our own; the settings are as on the wire."""
    metadata = result_metadata(result, Implementation.DIFFUSERS)
    settings = json.loads(metadata.pop("training_worker.settings"))

    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "robots",
        "modelspec.resolution": "64x64",
        "modelspec.date": "2025-03-01T12:00:00Z",
        "training_worker.version": "1.2.3",
        "training_worker.base_model": "FLUX.1-dev",
        "training_worker.dataset_hash": "abc",
        "training_worker.step": "6",
        "ss_base_model_version": "flux1",
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
    }
    assert expected == metadata
    assert (4, 0.01) == (settings["loraRank"], settings["learningRate"])


def test_an_sdxl_lora_has_metadata_of_what_it_is(sdxl_result: Result) -> None:
    """In kohya's file, with the names of the model's first code."""
    metadata = result_metadata(sdxl_result, Implementation.SDXL)

    assert "stable-diffusion-xl-v1-base/lora" == metadata["modelspec.architecture"]
    assert "https://github.com/Stability-AI/generative-models" == metadata["modelspec.implementation"]
    assert ("sdxl_base_v1-0", "networks.lora") == (metadata["ss_base_model_version"], metadata["ss_network_module"])


@pytest.mark.parametrize(
    ("training_type", "architecture"),
    [
        (TrainingType.SDXL_TEXTUAL_INVERSION, "stable-diffusion-xl-v1-base/textual-inversion"),
        (TrainingType.SDXL_FINETUNE, "stable-diffusion-xl-v1-base"),
    ],
)
def test_what_is_no_lora_has_no_rank(sdxl_result: Result, training_type: TrainingType, architecture: str) -> None:
    """Although its settings hold one."""
    metadata = result_metadata(replace(sdxl_result, training_type=training_type), Implementation.SDXL)

    assert architecture == metadata["modelspec.architecture"]
    assert [] == [key for key in metadata if key.startswith("ss_")]


def test_a_trigger_word_is_written_where_there_is_one(result: Result) -> None:
    """Programs put it into prompts by themselves."""
    triggered = replace(result, parameters=replace(result.parameters, trigger_word="zwx"))

    assert "zwx" == result_metadata(triggered, Implementation.DIFFUSERS)["modelspec.trigger_phrase"]
    assert "modelspec.trigger_phrase" not in result_metadata(result, Implementation.DIFFUSERS)


def test_the_hash_is_that_of_all_bytes_after_the_header(tmp_path: Path) -> None:
    """Of tensors of several types, whose order in the file is safetensors' own."""
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.bfloat16), "c": torch.arange(5)}

    write_with_metadata(tensors, tmp_path / "file.safetensors", {"modelspec.title": "ones"})

    content = (tmp_path / "file.safetensors").read_bytes()
    size = 3 * 4 + 2 * 2 + 5 * 8
    assert f"0x{hashlib.sha256(content[-size:]).hexdigest()}" == read_metadata(tmp_path / "file.safetensors")[HASH]
    torch.testing.assert_close(tensors, load_file(tmp_path / "file.safetensors"))


def test_everybody_may_read_a_file_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    """Who asked for it is somebody else."""
    write_with_metadata({"a": torch.ones(3)}, tmp_path / "file.safetensors", {})

    assert 0o644 == (tmp_path / "file.safetensors").stat().st_mode & 0o777
    assert ["file.safetensors"] == [path.name for path in tmp_path.iterdir()]


def test_a_file_that_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path: Path) -> None:
    """Here a folder is in the way."""
    place = tmp_path / "file.safetensors"
    place.mkdir()

    with pytest.raises(IsADirectoryError):
        write_with_metadata({"a": torch.ones(3)}, place, {})

    assert [place] == list(tmp_path.iterdir())


def test_a_kohya_file_with_metadata_loads(tmp_path: Path, sdxl_result: Result) -> None:
    """Diffusers takes its alphas, with which it does not take metadata of its own."""
    trained = sdxl.build_pipeline()
    trained.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False))
    weights = {f"unet.{key}": weight for key, weight in get_peft_model_state_dict(trained.unet).items()}
    metadata = result_metadata(sdxl_result, Implementation.SDXL)
    write_with_metadata(sdxl_to_kohya(weights), tmp_path / "kohya.safetensors", metadata)

    pipeline = sdxl.build_pipeline()
    pipeline.load_lora_weights(tmp_path, weight_name="kohya.safetensors")

    torch.testing.assert_close(sdxl.predict_noise(trained), sdxl.predict_noise(pipeline), rtol=0, atol=1e-5)
