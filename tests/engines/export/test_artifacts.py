"""The results as others will load them."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from msgspec.structs import replace
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.engines.conftest import PARAMETERS, SDXL_PARAMETERS
from tests.engines.trainers import BuildTrainer, take_steps

from training_schemas.jobs import TrainingType
from training_schemas.progress import Artifact
from training_schemas.spec import FluxLoraParameters
from training_worker.engines.common.export.files import ADAPTER_FILE, EMBEDDINGS_FILE, KOHYA_FILE, PIPELINE_FOLDER
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts
from training_worker.engines.diffusers.export.artifacts import describe_artifacts
from training_worker.engines.diffusers.export.metadata import Result
from training_worker.engines.diffusers.export.verify import predict, verify_adapter
from training_worker.engines.diffusers.training.trainer import Trainer

pytestmark = pytest.mark.trainer

PROMPT = "a robot"
WORD = "<robot>"


def result_of(training_type: TrainingType, parameters: Any) -> Result:
    """What a run made."""
    return Result(
        training_type=training_type,
        parameters=parameters,
        title="robot",
        date="2026-01-01T00:00:00+00:00",
        base_model="tiny",
        dataset_hash="a hash",
        step=3,
        worker_version="1",
    )


def export(trainer: Trainer, folder: Path, training_type: TrainingType = TrainingType.FLUX_LORA) -> dict[Path, str]:
    """Write a trainer's result."""
    return trainer.pipeline.export(folder, result_of(training_type, trainer.pipeline.parameters))


@torch.no_grad()
def predict_noise(unet: torch.nn.Module, texts: Texts) -> torch.Tensor:
    """Predict something by a prompt, always the same."""
    prediction: torch.Tensor = unet(
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        500,
        encoder_hidden_states=texts.tokens,
        added_cond_kwargs={"text_embeds": texts.pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])},
        return_dict=False,
    )[0]
    return prediction


@torch.no_grad()
def read(pipeline: StableDiffusionXLPipeline, prompt: str) -> Texts:
    """Embed a prompt by a pipeline of diffusers."""
    tokens, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    return Texts(tokens=tokens, pooled=pooled)


def test_a_flux_adapter_does_in_a_fresh_pipeline_what_it_did_in_training(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """To 1e-5 of the predictions. The reader of the other format knows the real model's width alone: test_kohya.py."""
    trainer = build(parameters)
    take_steps(trainer, 1, 3)
    export(trainer, tmp_path)

    pipeline = FluxPipeline.from_pretrained(tiny_model, text_encoder=None, text_encoder_2=None, vae=None)
    without = predict(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)

    assert (predict(pipeline.transformer) - without).abs().max() > 1e-3
    torch.testing.assert_close(predict(trainer.pipeline.denoiser), predict(pipeline.transformer), rtol=0, atol=1e-5)


def test_a_flux_text_encoder_does_what_it_did_in_training(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Its adapter is in the same file."""
    settings = replace(parameters, train_text_encoder=True)
    trainer = build(settings)
    take_steps(trainer, 1, 3)
    export(trainer, tmp_path)

    pipeline = FluxPipeline.from_pretrained(tiny_model, vae=None)
    with torch.no_grad():
        without = pipeline.encode_prompt(PROMPT, PROMPT, max_sequence_length=64)[1]
        pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
        pooled = pipeline.encode_prompt(PROMPT, PROMPT, max_sequence_length=64)[1]
        expected = trainer.texts.embed([PROMPT]).pooled

    assert (pooled - without).abs().max() > 1e-4
    torch.testing.assert_close(expected, pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", [ADAPTER_FILE, KOHYA_FILE])
def test_an_sdxl_adapter_does_in_a_fresh_pipeline_what_it_did_in_training(
    tmp_path: Path, tiny_sdxl: Path, build: BuildTrainer, file: str
) -> None:
    """UNet and both text encoders, in either format."""
    kind = TrainingType.SDXL_LORA
    trainer = build(replace(SDXL_PARAMETERS, train_text_encoder=True), kind)
    take_steps(trainer, 1, 3)
    export(trainer, tmp_path, kind)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    without = predict_noise(pipeline.unet, read(pipeline, PROMPT))
    pipeline.load_lora_weights(tmp_path, weight_name=file)

    with torch.no_grad():
        expected = predict_noise(trainer.pipeline.denoiser, trainer.texts.embed([PROMPT]))
    found = predict_noise(pipeline.unet, read(pipeline, PROMPT))

    assert (found - without).abs().max() > 1e-4
    torch.testing.assert_close(expected, found, rtol=0, atol=1e-5)


def test_embeddings_do_in_a_fresh_pipeline_what_they_did_in_training(
    tmp_path: Path, tiny_sdxl: Path, build: BuildTrainer
) -> None:
    """One file, which the pipeline's two text encoders take a half each of."""
    kind = TrainingType.SDXL_TEXTUAL_INVERSION
    trainer = build(replace(SDXL_PARAMETERS, trigger_word=WORD, embedding_vectors=2), kind)
    take_steps(trainer, 1, 3)
    export(trainer, tmp_path, kind)
    vectors = load_file(tmp_path / EMBEDDINGS_FILE)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    for name, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(vectors[name], token=WORD, text_encoder=encoder, tokenizer=tokenizer)

    with torch.no_grad():
        expected = trainer.texts.embed([f"a {WORD}"])
    found = read(pipeline, f"a {WORD}")

    torch.testing.assert_close(expected.tokens, found.tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(expected.pooled, found.pooled, rtol=0, atol=1e-5)


def test_a_finetune_is_a_pipeline_of_its_own(tmp_path: Path, build: BuildTrainer) -> None:
    """It predicts what it did in training, with the text encoders that learned with it."""
    kind = TrainingType.SDXL_FINETUNE
    trainer = build(replace(SDXL_PARAMETERS, train_text_encoder=True), kind)
    take_steps(trainer, 1, 2)
    export(trainer, tmp_path, kind)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / PIPELINE_FOLDER, add_watermarker=False)

    with torch.no_grad():
        expected = predict_noise(trainer.pipeline.denoiser, trainer.texts.embed([PROMPT]))
    found = predict_noise(pipeline.unet, read(pipeline, PROMPT))

    torch.testing.assert_close(expected, found, rtol=0, atol=1e-5)


def test_the_keys_are_those_that_all_programs_read(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Layers by diffusers' names, A and B, and no alpha, which then equals the rank."""
    export(build(parameters), tmp_path)
    keys = load_file(tmp_path / ADAPTER_FILE).keys()

    assert "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight" in keys
    assert "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight" in keys
    assert {"weight"} == {key.rpartition(".")[2] for key in keys}


def test_the_text_encoders_keys_are_the_usual_ones(tmp_path: Path, build: BuildTrainer) -> None:
    """Newer versions of transformers name the layers of one of them otherwise."""
    kind = TrainingType.SDXL_LORA
    export(build(replace(SDXL_PARAMETERS, train_text_encoder=True), kind), tmp_path, kind)
    keys = load_file(tmp_path / ADAPTER_FILE).keys()

    for encoder in ("text_encoder", "text_encoder_2"):
        assert f"{encoder}.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in keys


def test_a_file_has_metadata_of_what_it_is(tmp_path: Path, build: BuildTrainer) -> None:
    """To programs that list models, and to those who wonder later how it was made."""
    export(build(replace(PARAMETERS, trigger_word="rob0t")), tmp_path)
    with safe_open(tmp_path / ADAPTER_FILE, framework="pt") as file:
        metadata = file.metadata()

    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert metadata["modelspec.trigger_phrase"] == "rob0t"
    assert metadata["training_worker.dataset_hash"] == "a hash"
    assert '"loraRank":4' in metadata["training_worker.settings"]


def test_artifacts_are_described_below_the_attempt(tmp_path: Path) -> None:
    """The attempt's folder will be renamed; the paths in it stay."""
    (tmp_path / "samples").mkdir()
    files = {tmp_path / "adapter": b"adapter", tmp_path / "samples" / "one.png": b"image"}
    for path, content in files.items():
        path.write_bytes(content)

    found = describe_artifacts({tmp_path / "adapter": "adapter"}, [tmp_path / "samples" / "one.png"], tmp_path)

    digests = [hashlib.sha256(content).hexdigest() for content in files.values()]
    assert [
        Artifact(path="adapter", kind="adapter", size_bytes=7, sha256=digests[0]),
        Artifact(path="samples/one.png", kind="sample", size_bytes=5, sha256=digests[1]),
    ] == found


def test_an_adapter_that_learned_is_verified(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """All of its tensors are counted."""
    trainer = build(parameters)
    take_steps(trainer, 1, 2)
    export(trainer, tmp_path)

    verified = verify_adapter(tiny_model, tmp_path)

    assert (44, (tmp_path / ADAPTER_FILE).stat().st_size) == (verified.tensors, verified.bytes)
    assert verified.max_output_difference > 0


def test_an_adapter_that_changes_nothing_is_reported(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """As one whose training never took a step."""
    export(build(parameters), tmp_path)

    with pytest.raises(ValueError, match=r"differ from those without by 0\.0"):
        verify_adapter(tiny_model, tmp_path)


def test_an_adapter_for_layers_that_do_not_exist_is_reported(
    tmp_path: Path, tiny_model: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Diffusers passes over them with a warning."""
    trainer = build(parameters)
    take_steps(trainer, 1, 1)
    export(trainer, tmp_path)
    tensors = load_file(tmp_path / ADAPTER_FILE)
    strange = {key.replace("blocks.1.attn.to_q", "blocks.1.attn.to_z"): tensor for key, tensor in tensors.items()}
    save_file(strange, tmp_path / ADAPTER_FILE)

    with pytest.raises(ValueError, match="4 tensors were not taken"):
        verify_adapter(tiny_model, tmp_path)
