"""Checkpoints: what upstream saves, moved to where it belongs."""

import importlib
from pathlib import Path

from ..common.export.files import EMBEDDINGS_FILE, KOHYA_FILE, make_safe
from ..common.protocol.failures import TrainingFailure
from ..common.protocol.fsync import flush
from .spec import INVERSION

# What upstream saves as a file, and not as a folder.
CHECKPOINT_FILES = {"SDXL_LORA": KOHYA_FILE, INVERSION: EMBEDDINGS_FILE}


def require_finite(checkpoint: Path, step: int) -> None:
    """See that all that was trained is numbers: the gradients of a finite loss may not be.

    Raises:
        TrainingFailure: It is not.
    """
    safetensors = importlib.import_module("safetensors")
    for file in _trained_files(checkpoint):
        with safetensors.safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 # it is no mapping
                if not tensors.get_tensor(name).isfinite().all():
                    raise TrainingFailure("lossNotFinite", f"cannot go on: {name} is not finite after step {step}")


def _trained_files(checkpoint: Path) -> list[Path]:
    if checkpoint.is_file():
        return [checkpoint]
    unet = checkpoint / "unet"  # of a whole pipeline, the rest of which did not learn
    return sorted((unet if unet.is_dir() else checkpoint).rglob("*.safetensors"))


def keep_checkpoint(source: Path, target: Path, name: str) -> Path:
    """Move a checkpoint to its folder, which is there only when all of it is; gives the checkpoint's new path."""
    target.parent.mkdir(exist_ok=True)
    folder = source
    if source.is_file():
        folder = target.with_name(f".{target.name}.partial")
        folder.mkdir()
        source.rename(folder / name)
    make_safe([*folder.rglob("*"), folder])
    folder.rename(target)
    flush(target.parent)
    return target / name if name else target
