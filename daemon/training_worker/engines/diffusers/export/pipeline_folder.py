"""A fine-tuned model: a pipeline's folder that can be loaded by itself, with the trained parts among those of the base.

What a base's folder holds beside its parts, and weights that diffusers reads in other ways only, are not copied.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training_worker.engines.common.protocol.fsync import flush
from training_worker.engines.diffusers.models.folder import INDEX

SUFFIXES = {".json", ".txt", ".model", ".safetensors"}


def write_finetuned(base: Path, trained: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write trained models by the names of their parts, as ``unet``, and copies of the base's other parts.

    All files are listed, readable for everybody and safe on disk. The models are written in the type that they have.

    Raises:
        ValueError: The pipeline has no such part.
    """
    index = json.loads((base / INDEX).read_bytes())
    if unknown := sorted(trained.keys() - index.keys()):
        raise ValueError(f"cannot write {folder}: the pipeline {base} has no part {unknown[0]}")
    folder.mkdir(parents=True)
    shutil.copyfile(base / INDEX, folder / INDEX)
    for part in index:
        if part in trained:
            trained[part].save_pretrained(folder / part, safe_serialization=True)
        elif (base / part).is_dir():
            _copy_part(base / part, folder / part)
    paths = sorted(folder.rglob("*"))
    files = [path for path in paths if path.is_file()]
    for file in files:
        file.chmod(0o644)
    for path in [*paths, folder, folder.parent]:
        flush(path)
    return files


def _copy_part(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        # Of a variant, as in `model.fp16.safetensors`, there is another file that is read by itself.
        variant = file.suffix == ".safetensors" and "." in file.stem
        if file.is_file() and file.suffix in SUFFIXES and not variant:
            shutil.copyfile(file, target / file.name)
