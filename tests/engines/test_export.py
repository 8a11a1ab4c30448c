"""The adapter as others will load it."""

import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from tests.engines.trainers import BuildTrainer, take_steps

from training_schemas.progress import Artifact
from training_schemas.spec import FluxLoraParameters
from training_worker.engines.diffusers.adapters import ADAPTER_FILE
from training_worker.engines.diffusers.export import export_result
from training_worker.engines.diffusers.verify import predict, verify_adapter

pytestmark = pytest.mark.trainer


def test_the_adapter_does_in_a_fresh_pipeline_what_it_did_in_training(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """To 1e-5 of the predictions."""
    trainer = build(parameters)
    take_steps(trainer, 1, 3)
    export_result(trainer.transformer, tmp_path, [])

    pipeline = FluxPipeline.from_pretrained(tiny_model, text_encoder=None, text_encoder_2=None, vae=None)
    without = predict(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)

    assert (predict(pipeline.transformer) - without).abs().max() > 1e-3
    torch.testing.assert_close(predict(trainer.transformer), predict(pipeline.transformer), rtol=0, atol=1e-5)


def test_the_keys_are_those_that_all_programs_read(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Layers by diffusers' names, A and B, and no alpha, which then equals the rank."""
    export_result(build(parameters).transformer, tmp_path, [])
    keys = load_file(tmp_path / ADAPTER_FILE).keys()

    assert "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight" in keys
    assert "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight" in keys
    assert {"weight"} == {key.rpartition(".")[2] for key in keys}


def test_artifacts_are_described_below_the_attempt(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """The attempt's folder will be renamed; the paths in it stay."""
    picture = tmp_path / "samples" / "one.png"
    picture.parent.mkdir()
    picture.write_bytes(b"picture")

    adapter, sample = export_result(build(parameters).transformer, tmp_path, [picture])

    content = (tmp_path / ADAPTER_FILE).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert Artifact(path=ADAPTER_FILE, kind="adapter", size_bytes=len(content), sha256=digest) == adapter
    digest = hashlib.sha256(b"picture").hexdigest()
    assert Artifact(path="samples/one.png", kind="sample", size_bytes=7, sha256=digest) == sample


def test_an_adapter_that_learned_is_verified(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """All of its tensors are counted."""
    trainer = build(parameters)
    take_steps(trainer, 1, 2)
    export_result(trainer.transformer, tmp_path, [])

    verified = verify_adapter(tiny_model, tmp_path)

    assert (44, (tmp_path / ADAPTER_FILE).stat().st_size) == (verified.tensors, verified.bytes)
    assert verified.max_output_difference > 0


def test_an_adapter_that_changes_nothing_is_told(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """As one whose training never took a step."""
    export_result(build(parameters).transformer, tmp_path, [])

    with pytest.raises(ValueError, match=r"differ from those without by 0\.0"):
        verify_adapter(tiny_model, tmp_path)


def test_an_adapter_for_layers_that_do_not_exist_is_told(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Diffusers passes over them with a warning."""
    trainer = build(parameters)
    take_steps(trainer, 1, 1)
    export_result(trainer.transformer, tmp_path, [])
    tensors = load_file(tmp_path / ADAPTER_FILE)
    strange = {key.replace("blocks.1.attn.to_q", "blocks.1.attn.to_z"): tensor for key, tensor in tensors.items()}
    save_file(strange, tmp_path / ADAPTER_FILE)

    with pytest.raises(ValueError, match="4 tensors were not taken"):
        verify_adapter(tiny_model, tmp_path)
