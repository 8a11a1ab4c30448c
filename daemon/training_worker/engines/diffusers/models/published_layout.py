"""The layout in which pipelines are published, which transformers 4 reads as well as 5.

What transformers 5 writes lacks files that version 4 needs, and names one kind of text encoder's weights otherwise:
version 4 would go on with random ones.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from training_worker.engines.diffusers.models.folder import INDEX
from training_worker.engines.diffusers.models.lora import CLIP_PREFIX


def publish(folder: Path) -> None:
    """Make of a pipeline's folder as transformers 5 has written it one that version 4 reads, too."""
    for encoder in folder.glob("text_encoder*"):
        if "CLIPTextModel" in _read(encoder / "config.json")["architectures"]:
            _prefix_weights(encoder / "model.safetensors")
    for tokenizer in folder.glob("tokenizer*"):
        model = _read(tokenizer / "tokenizer.json")["model"]
        if model["type"] == "BPE":
            _write_vocabulary(tokenizer, model)
        else:
            _publish_t5(folder, tokenizer)


def _prefix_weights(file: Path) -> None:
    weights = {CLIP_PREFIX + name.removeprefix(CLIP_PREFIX): weight for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def _write_vocabulary(tokenizer: Path, model: Mapping[str, Any]) -> None:
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (tokenizer / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")


def _publish_t5(folder: Path, tokenizer: Path) -> None:
    """Without a model of sentencepiece, version 4 reads it only as the fast kind, and no list of further tokens."""
    index = _read(folder / INDEX)
    index[tokenizer.name] = ["transformers", "T5TokenizerFast"]
    _write(folder / INDEX, index)
    settings = tokenizer / "tokenizer_config.json"
    _write(settings, {name: value for name, value in _read(settings).items() if name != "extra_special_tokens"})


def _read(file: Path) -> Any:
    return json.loads(file.read_bytes())


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
