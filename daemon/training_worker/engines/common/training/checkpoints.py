"""The folders of an attempt's checkpoints."""

import shutil
from pathlib import Path

FOLDER = "checkpoints"


def checkpoint_folder(attempt: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return attempt / FOLDER / f"step-{step:08}"


def drop_old(parent: Path, keep: int) -> None:
    """Delete all checkpoints of an attempt but the last ones."""
    for folder in sorted(parent.glob("step-*"))[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)
