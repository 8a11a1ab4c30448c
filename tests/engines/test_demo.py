"""What a newcomer trains on: a data set and a model that are made on the spot."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.engines.datasets import read
from transformers import CLIPTokenizer

from training_worker.engines.demo_dataset import write_dataset
from training_worker.engines.diffusers.models.tiny import write_pipeline

pytestmark = pytest.mark.trainer


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_data_set_is_valid(robots: Path) -> None:
    """Ten robots, each with a caption of its own."""
    dataset = read(robots).examples

    assert len(dataset) == 10
    assert len({example.caption for example in dataset}) == 10


def test_the_data_set_is_always_the_same(tmp_path: Path, robots: Path) -> None:
    """So results can be compared."""
    write_dataset(tmp_path)

    assert contents(robots) == contents(tmp_path)


def test_the_model_is_always_the_same(tmp_path: Path, tiny_model: Path) -> None:
    """And about a megabyte."""
    write_pipeline(tmp_path)

    assert contents(tiny_model) == contents(tmp_path)
    assert sum(map(len, contents(tmp_path).values())) < 1_200_000


@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
def test_older_libraries_read_the_model(tiny_sdxl: Path, tokenizer: str) -> None:
    """They look for weights and tokens where published models have them, and else go on with random weights."""
    weights = load_file(tiny_sdxl / "text_encoder" / "model.safetensors")
    vocabulary = json.loads((tiny_sdxl / tokenizer / "vocab.json").read_bytes())

    assert all(name.startswith("text_model.") for name in weights)
    assert vocabulary == CLIPTokenizer.from_pretrained(tiny_sdxl / tokenizer).get_vocab()
    assert (tiny_sdxl / tokenizer / "merges.txt").read_text(encoding="utf-8") == "#version: 0.2\n"


def test_older_libraries_read_the_model_of_flux(tiny_model: Path) -> None:
    """Its second tokenizer only as the fast kind, without a list among its settings."""
    index = json.loads((tiny_model / "model_index.json").read_bytes())
    settings = json.loads((tiny_model / "tokenizer_2" / "tokenizer_config.json").read_bytes())

    assert index["tokenizer_2"] == ["transformers", "T5TokenizerFast"]
    assert not any(isinstance(value, list) for value in settings.values())
