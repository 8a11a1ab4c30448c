"""Captions as embeddings."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from msgspec.structs import asdict, replace

from training_schemas.jobs import TrainingType
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache
from training_worker.engines.diffusers.diffusion.text_embeddings import CachedTexts, Texts
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.pipelines import PIPELINES
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline

pytestmark = pytest.mark.trainer

LIMIT = 2**30


def never() -> None:
    """Nobody asks to stop."""


def reading(
    model: Path, training_type: TrainingType, parameters: FluxLoraParameters | SdxlParameters
) -> TrainingPipeline[FluxLoraParameters | SdxlParameters]:
    """A pipeline that has its text encoders and nothing else."""
    kind = PIPELINES[training_type]
    pipeline = kind(ModelLoader(model, kind.family, parameters.weight_dtype, "cpu"), parameters)
    pipeline.load_encoders()
    return pipeline


def test_each_text_is_embedded_once(tmp_path: Path, tiny_model: Path, parameters: FluxLoraParameters) -> None:
    """Many data sets have one caption for all images."""
    pipeline = reading(tiny_model, TrainingType.FLUX_LORA, parameters)
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> Texts:
        asked.extend(texts)
        return pipeline.embed(texts)

    with TensorCache(tmp_path / "cache", LIMIT) as cache:
        texts = CachedTexts(cache, "model", [77, 64])
        assert not texts.has_all(["a robot"])
        texts.embed_all(["a robot", "a house", "a robot"], embed, never)
        assert texts.has_all(["a house", "a robot"])
        both = texts.embed(["a house", "a robot"])
        assert not CachedTexts(cache, "model", [77, 32]).has_all(["a robot"])

    assert ["a robot", "a house"] == asked
    assert (2, 64, 32) == both.tokens.shape
    assert (2, 32) == both.pooled.shape
    assert not torch.equal(both.pooled[0], both.pooled[1])


def test_texts_that_stay_on_the_device_are_read_once(
    tmp_path: Path, tiny_model: Path, parameters: FluxLoraParameters
) -> None:
    """And are those of the cache."""
    pipeline = reading(tiny_model, TrainingType.FLUX_LORA, parameters)
    with TensorCache(tmp_path / "cache", LIMIT) as cache:
        read = CachedTexts(cache, "model", [77, 64])
        read.embed_all(["a robot", "a house"], pipeline.embed, never)
        kept = CachedTexts(cache, "model", [77, 64], keep_on=pipeline.loader.device)
        expected = read.embed(["a house", "a robot"])
        kept.embed(["a house", "a robot"])
        for entry in (tmp_path / "cache").rglob("*.safetensors"):
            entry.unlink()

        torch.testing.assert_close(asdict(kept.embed(["a house", "a robot"])), asdict(expected), rtol=0, atol=0)
        with pytest.raises(FileNotFoundError, match="has lost the embedding"):
            read.embed(["a house"])


def test_flux_texts_are_cut_to_the_lengths_that_are_allowed(tiny_model: Path, parameters: FluxLoraParameters) -> None:
    """What comes after that many tokens of CLIP and of T5 makes no difference."""
    short = replace(parameters, clip_tokenizer_max_length=8, t5_tokenizer_max_length=8)
    pipeline = reading(tiny_model, TrainingType.FLUX_LORA, short)
    both = pipeline.embed(["a robot of iron", "a robot of gold"])

    assert (2, 8, 32) == both.tokens.shape
    torch.testing.assert_close(both.tokens[0], both.tokens[1])
    torch.testing.assert_close(both.pooled[0], both.pooled[1])


def test_sdxl_reads_with_both_encoders(tiny_sdxl: Path, sdxl_parameters: SdxlParameters) -> None:
    """Side by side, each by its layer before the last; the second one's projection as a whole."""
    pipeline = reading(tiny_sdxl, TrainingType.SDXL_LORA, sdxl_parameters)
    texts = pipeline.embed(["a robot"])
    encoders = pipeline.encoders
    ids = encoders.tokenizer("a robot", padding="max_length", max_length=77, return_tensors="pt").input_ids
    first = encoders.text_encoder(ids, output_hidden_states=True)
    second = encoders.text_encoder_2(ids, output_hidden_states=True)

    torch.testing.assert_close(texts.tokens[..., :32], first.hidden_states[-2])
    torch.testing.assert_close(texts.tokens[..., 32:], second.hidden_states[-2])
    torch.testing.assert_close(texts.pooled, second.text_embeds)


def test_a_trigger_word_becomes_all_its_new_tokens(tiny_sdxl: Path, sdxl_parameters: SdxlParameters) -> None:
    """In both encoders; and the embedding of each of them matters to a caption that holds the word."""
    settings = replace(sdxl_parameters, trigger_word="<robot>", embedding_vectors=3)
    pipeline = reading(tiny_sdxl, TrainingType.SDXL_TEXTUAL_INVERSION, settings)
    texts = pipeline.embed(["a <robot>"])
    (texts.tokens.sum() + texts.pooled.sum()).backward()  # type: ignore[no-untyped-call]

    for vectors in pipeline.groups()[0]["params"]:
        assert vectors.grad.abs().sum(dim=1).gt(0).all()
    assert {(3, 32), (3, 48)} == {tuple(weight.shape) for weight in pipeline.weights().values()}


def test_a_caption_without_the_word_reads_as_before(tiny_sdxl: Path, sdxl_parameters: SdxlParameters) -> None:
    """The table of all other tokens is not touched."""
    plain = reading(tiny_sdxl, TrainingType.SDXL_LORA, sdxl_parameters)
    extended = reading(tiny_sdxl, TrainingType.SDXL_TEXTUAL_INVERSION, replace(sdxl_parameters, trigger_word="<robot>"))

    torch.testing.assert_close(plain.embed(["a robot"]).tokens, extended.embed(["a robot"]).tokens, rtol=0, atol=0)
