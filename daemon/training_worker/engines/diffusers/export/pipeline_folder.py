"""A fine-tuned model: a pipeline's folder that can be loaded by itself, with the trained parts among those of the base.

What a base's folder holds beside its parts, and weights that diffusers reads in other ways only, are not copied.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training_worker.engines.common.export.files import copy_part, make_safe
from training_worker.engines.diffusers.models.folder import INDEX


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
            copy_part(base / part, folder / part)
    paths = sorted(folder.rglob("*"))
    files = [path for path in paths if path.is_file()]
    make_safe([*paths, folder, folder.parent])
    return files
