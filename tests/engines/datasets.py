"""Small data sets, and reading them as a run does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image
from tests.engines.conftest import PARAMETERS

from training_schemas.progress import FailureReason
from training_schemas.spec import FluxLoraParameters
from training_worker.engines.common.protocol.failures import Fault, TrainingFailure
from training_worker.engines.diffusers.data.dataset import Dataset, read_dataset


def never() -> None:
    """Nobody asks to stop."""


def settings(**changes: Any) -> FluxLoraParameters:
    """The settings of a short run at 64 pixels, but for what is given."""
    return msgspec.structs.replace(PARAMETERS, **changes)


def write_image(path: Path, size: tuple[int, int] = (64, 64), colour: str = "green") -> Path:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_mask(path: Path, size: tuple[int, int] = (64, 64), grey: int = 255) -> Path:
    """Write a mask of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)
    return path


def write_example(path: Path, caption: str = "a square", size: tuple[int, int] = (64, 64)) -> Path:
    """Write an image and its caption beside it."""
    write_image(path, size)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def write_lines(path: Path, *lines: Mapping[str, Any]) -> Path:
    """Write a file of JSON objects, one a line."""
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


def read(path: Path, **changes: Any) -> Dataset:
    """Read a data set by the settings of a short run, but for what is given; tables are unpacked beside it."""
    return read_dataset(path, settings(**changes), 16, path.parent / "extracted", never, lambda _: None)


def faults_of(path: Path, **changes: Any) -> list[Fault]:
    """Read a data set that is refused, and return why."""
    with pytest.raises(TrainingFailure) as raised:
        read(path, **changes)
    assert FailureReason.DATASET_INVALID == raised.value.reason
    return raised.value.faults
