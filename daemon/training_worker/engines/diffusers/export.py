"""The result of a run, as files with their digests."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from diffusers import FluxTransformer2DModel

from training_schemas.progress import Artifact
from training_worker.engines.diffusers.adapters import save_adapter
from training_worker.engines.diffusers.checkpoints import flush

ADAPTER = "adapter"
SAMPLE = "sample"


def export_result(transformer: FluxTransformer2DModel, attempt: Path, samples: Iterable[Path]) -> list[Artifact]:
    """Write the adapter to the attempt's folder and describe it and the pictures drawn with it, safe on disk."""
    adapter = save_adapter(transformer, attempt)
    # safetensors writes for the owner alone, and who asked for the adapter is somebody else.
    adapter.chmod(0o644)
    files = {adapter: ADAPTER, **dict.fromkeys(samples, SAMPLE)}
    for path in [*files, attempt]:
        flush(path)
    return [_describe(path, kind, attempt) for path, kind in files.items()]


def _describe(path: Path, kind: str, attempt: Path) -> Artifact:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(path=path.relative_to(attempt).as_posix(), kind=kind, size_bytes=path.stat().st_size, sha256=digest)
