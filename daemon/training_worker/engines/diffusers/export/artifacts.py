"""The result of a run: its files, in the formats that other programs read, and what they are."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from training_schemas.progress import Artifact
from training_worker.engines.common.export.files import (
    ADAPTER,
    ADAPTER_FILE,
    EMBEDDINGS,
    EMBEDDINGS_FILE,
    KOHYA_ADAPTER,
    KOHYA_FILE,
    PIPELINE,
    PIPELINE_FOLDER,
    SAMPLE,
    describe_files,
)
from training_worker.engines.common.export.metadata import write_with_metadata
from training_worker.engines.diffusers.export.metadata import (
    Implementation,
    Result,
    result_metadata,
)
from training_worker.engines.diffusers.export.pipeline_folder import write_finetuned
from training_worker.engines.diffusers.export.textual_inversion import embeddings_file

Weights = Mapping[str, torch.Tensor]


def export_adapter(
    weights: Weights,
    to_kohya: Callable[[Weights], dict[str, torch.Tensor]],
    original: Implementation,
    folder: Path,
    result: Result,
) -> dict[Path, str]:
    """Write an adapter twice: in the keys of diffusers, and in kohya's, which follow the ``original`` code."""
    ours = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    write_with_metadata(ours, folder / ADAPTER_FILE, result_metadata(result, Implementation.DIFFUSERS))
    write_with_metadata(to_kohya(ours), folder / KOHYA_FILE, result_metadata(result, original))
    return {folder / ADAPTER_FILE: ADAPTER, folder / KOHYA_FILE: KOHYA_ADAPTER}


def export_embeddings(vectors: Weights, folder: Path, result: Result) -> dict[Path, str]:
    """Write the embeddings of both text encoders of SDXL, ``clip_l`` and ``clip_g``, each (vectors, width)."""
    path = folder / EMBEDDINGS_FILE
    embeddings_file(vectors["clip_l"], vectors["clip_g"], path, result_metadata(result, Implementation.SDXL))
    return {path: EMBEDDINGS}


def export_pipeline(parts: Mapping[str, torch.nn.Module], base: Path, folder: Path) -> dict[Path, str]:
    """Write a pipeline's folder: the parts that learned, and the rest of the base model as it is."""
    target = folder / PIPELINE_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    return dict.fromkeys(write_finetuned(base, parts, target), PIPELINE)


def describe_artifacts(files: Mapping[Path, str], samples: Iterable[Path], attempt: Path) -> list[Artifact]:
    """Describe the files of a result by their kinds, and its images, all of them safe on disk."""
    return [
        Artifact(path=file.path, kind=file.kind, size_bytes=file.size, sha256=file.digest)
        for file in describe_files({**files, **dict.fromkeys(samples, SAMPLE)}, attempt)
    ]
