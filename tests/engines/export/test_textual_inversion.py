"""The file of a textual inversion, as others will load it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.engines import sdxl

from training_worker.engines.diffusers.export.textual_inversion import embeddings_file

pytestmark = pytest.mark.trainer

FILE = "embeddings.safetensors"
TOKENS = ["<zwx>", "<zwx_1>"]


@torch.no_grad()
def encode(encoder: Any, tokenizer: Any) -> torch.Tensor:
    """Encode a prompt that holds the new tokens; both layers that SDXL reads."""
    tokens = tokenizer(f"a {' '.join(TOKENS)} robot", return_tensors="pt").input_ids
    hidden = encoder(tokens, output_hidden_states=True).hidden_states
    return torch.stack([hidden[-2], hidden[-1]])


def test_diffusers_gives_both_text_encoders_their_embeddings(tmp_path: Path) -> None:
    """They then encode a prompt as those whose embeddings were set by hand."""
    widths = {"clip_l": sdxl.WIDTH_L, "clip_g": sdxl.WIDTH_G}
    learned = {name: torch.randn(2, width, requires_grad=True) for name, width in widths.items()}
    embeddings_file(learned["clip_l"], learned["clip_g"], tmp_path / FILE, {})
    pipeline, by_hand = sdxl.build_pipeline(), sdxl.build_pipeline()

    for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = (getattr(pipeline, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
        loaded = load_file(tmp_path / FILE)[name]
        pipeline.load_textual_inversion(loaded, token=TOKENS, tokenizer=tokenizer, text_encoder=encoder)

        expected, own_tokenizer = (getattr(by_hand, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
        own_tokenizer.add_tokens(TOKENS)
        expected.resize_token_embeddings(len(own_tokenizer), mean_resizing=False)
        before = encode(expected, own_tokenizer)
        expected.get_input_embeddings().weight.data[-2:] = learned[name].detach()
        assert (encode(expected, own_tokenizer) - before).abs().max() > 1e-2
        torch.testing.assert_close(encode(expected, own_tokenizer), encode(encoder, tokenizer), rtol=0, atol=1e-6)


def test_the_file_is_float32_with_metadata(tmp_path: Path) -> None:
    """Whatever they were trained in, and by the two names that programs look for."""
    embeddings_file(
        torch.ones(2, 768, dtype=torch.bfloat16),
        torch.ones(2, 1280, dtype=torch.float16),
        tmp_path / FILE,
        {"modelspec.title": "robots"},
    )

    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in load_file(tmp_path / FILE).items()}
    assert {"clip_l": ((2, 768), torch.float32), "clip_g": ((2, 1280), torch.float32)} == shapes
    with safe_open(tmp_path / FILE, framework="pt") as file:
        assert "robots" == file.metadata()["modelspec.title"]
