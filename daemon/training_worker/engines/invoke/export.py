"""The result: files that other programs read, with metadata that describes them."""

import json
import runpy
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.export import kohya
from ..common.export.files import (
    ADAPTER,
    ADAPTER_FILE,
    EMBEDDINGS,
    EMBEDDINGS_FILE,
    KOHYA_ADAPTER,
    KOHYA_FILE,
    PIPELINE,
    PIPELINE_FOLDER,
    copy_part,
    describe_files,
    make_safe,
)
from ..common.export.metadata import DIFFUSERS, FLUX_CODE, SDXL_CODE, ResultFacts, metadata_of, write_with_metadata
from ..common.protocol.fsync import flush
from .model import INDEX
from .spec import FINETUNE, FLUX, INVERSION, Spec
from .weights import flux_weights, load_weights, sdxl_weights

VERSION_FILE = Path(__file__).resolve().parents[2] / "version.py"


class Export:
    """Makes the result of the last checkpoint: files that other programs read, with metadata that describes them.

    What it needs of ours is read at once, and not only after hours of training.
    """

    def __init__(self, spec: Spec, dataset_hash: str) -> None:
        self._spec = spec
        self._dataset_hash = dataset_hash
        self._version = runpy.run_path(str(VERSION_FILE))["__version__"]

    def write(self, checkpoint: Path) -> dict[Path, str]:
        """Write the result, and give its files with their kinds."""
        attempt = self._spec.attempt
        if self._spec.training_type == FINETUNE:
            return dict.fromkeys(write_pipeline(self._spec.model, checkpoint, attempt / PIPELINE_FOLDER), PIPELINE)
        if self._spec.training_type == INVERSION:
            path = attempt / EMBEDDINGS_FILE
            vectors = {name: weight.float() for name, weight in load_weights(checkpoint).items()}
            self._write_file(vectors, path, SDXL_CODE)
            return {path: EMBEDDINGS}
        return self._write_adapter(checkpoint)

    def _write_adapter(self, checkpoint: Path) -> dict[Path, str]:
        attempt, flux = self._spec.attempt, self._spec.training_type == FLUX
        weights = flux_weights(checkpoint) if flux else sdxl_weights(checkpoint, self._spec.model)
        convert, code = (kohya.flux_to_kohya, FLUX_CODE) if flux else (kohya.sdxl_to_kohya, SDXL_CODE)
        ours, theirs = attempt / ADAPTER_FILE, attempt / KOHYA_FILE
        self._write_file(weights, ours, DIFFUSERS)
        self._write_file(convert(weights), theirs, code)
        return {ours: ADAPTER, theirs: KOHYA_ADAPTER}

    def _write_file(self, tensors: Mapping[str, Any], path: Path, implementation: str) -> None:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_with_metadata(whole, path, metadata_of(self._facts(), implementation))

    def _facts(self) -> ResultFacts:
        parameters = self._spec.parameters
        return ResultFacts(
            training_type=self._spec.training_type,
            resolution=parameters["resolution"],
            trigger_word=parameters["triggerWord"],
            lora_rank=parameters["loraRank"],
            settings=json.dumps(parameters, separators=(",", ":")),
            title=self._spec.job_id,
            date=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            base_model=self._spec.model.name,
            dataset_hash=self._dataset_hash,
            step=self._spec.total,
            worker_version=self._version,
        )


def write_pipeline(base: Path, checkpoint: Path, folder: Path) -> list[Path]:
    """Write a pipeline's folder: the UNet that learned, and the other parts of the base as they are.

    Upstream's own folder has the scheduler that it trained with, and all parts in the type of the UNet.
    """
    index = json.loads((base / INDEX).read_bytes())
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir()
    shutil.copyfile(base / INDEX, partial / INDEX)
    for part in index:
        source = checkpoint / part if part == "unet" else base / part
        if source.is_dir():
            copy_part(source, partial / part)
    make_safe([*partial.rglob("*"), partial])
    partial.rename(folder)
    flush(folder.parent)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def describe(files: Mapping[Path, str], attempt: Path) -> list[dict[str, Any]]:
    """Describe the files of a result by their kinds, as records have them, all of them safe on disk."""
    return [
        {"path": file.path, "kind": file.kind, "sizeBytes": file.size, "sha256": file.digest}
        for file in describe_files(files, attempt)
    ]
