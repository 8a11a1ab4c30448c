"""The files of a result: their names, their kinds, and that they survive."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.digests import digest_of
from ..protocol.fsync import flush

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "kohya_lora.safetensors"
EMBEDDINGS_FILE = "learned_embeds.safetensors"
PIPELINE_FOLDER = "pipeline"

ADAPTER = "adapter"
KOHYA_ADAPTER = "kohyaAdapter"
EMBEDDINGS = "embeddings"
PIPELINE = "pipeline"
SAMPLE = "sample"

# What is copied of a part of the base model.
SUFFIXES = {".json", ".txt", ".model", ".safetensors"}


@dataclass(frozen=True)
class ResultFile:
    """A file of a result: its path in the attempt's folder, its kind, its bytes, and their SHA-256 in hex."""

    path: str
    kind: str
    size: int
    digest: str


def describe_files(files: Mapping[Path, str], attempt: Path) -> list[ResultFile]:
    """Describe the files of a result by their kinds, all of them readable for everybody and safe on disk."""
    make_safe([*files, *{path.parent for path in files}, attempt])
    return [
        ResultFile(path.relative_to(attempt).as_posix(), kind, path.stat().st_size, digest_of(path))
        for path, kind in files.items()
    ]


def make_safe(paths: Iterable[Path]) -> None:
    """Make files readable for everybody, and see that files and folders survive a loss of power."""
    for path in paths:
        if path.is_file():
            # Some libraries write for the owner alone, and who asked for the result is somebody else.
            path.chmod(0o644)
        flush(path)


def copy_part(source: Path, target: Path) -> None:
    """Copy a part of a pipeline's folder: what loads by itself, and is no pickle."""
    target.mkdir()
    for file in source.iterdir():
        # Of a variant, as in `model.fp16.safetensors`, there is another file that is read by itself.
        variant = file.suffix == ".safetensors" and "." in file.stem
        if file.is_file() and file.suffix in SUFFIXES and not variant:
            shutil.copyfile(file, target / file.name)
