"""The metadata of results of the engine ``invoke``."""

import dataclasses
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from tests.engines.conftest import PARAMETERS, SDXL_PARAMETERS
from tests.engines.invoke_runs import spec_of

from training_schemas.jobs import TrainingType
from training_worker.engines.common.export.metadata import write_with_metadata
from training_worker.engines.diffusers.export.metadata import (
    Implementation,
    Result,
    result_metadata,
)
from training_worker.engines.invoke.export import Export
from training_worker.version import __version__

pytestmark = pytest.mark.trainer

FLUX = TrainingType.FLUX_LORA
SDXL = TrainingType.SDXL_LORA
INVERSION = TrainingType.SDXL_TEXTUAL_INVERSION


@pytest.mark.parametrize("kind", [FLUX, SDXL, INVERSION])
def test_files_have_the_same_metadata_as_those_of_the_built_in_trainer(tmp_path: Path, kind: TrainingType) -> None:
    """The same fields, with the same hash."""
    settings = msgspec.structs.replace(PARAMETERS if kind is FLUX else SDXL_PARAMETERS, trigger_word="rbt")
    spec = dataclasses.replace(spec_of(tmp_path, kind), parameters=msgspec.to_builtins(settings))
    result = Result(
        training_type=kind,
        parameters=settings,
        title="job",
        date="now",
        base_model="model",
        dataset_hash="hash",
        step=settings.max_train_steps,
        worker_version=__version__,
    )
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(2)}
    write_with_metadata(tensors, tmp_path / "ours", result_metadata(result, Implementation.DIFFUSERS))
    Export(spec, "hash")._write_file(tensors, tmp_path / "theirs", "diffusers")

    ours, theirs = metadata_of(tmp_path / "ours"), metadata_of(tmp_path / "theirs")
    assert datetime.fromisoformat(theirs.pop("modelspec.date")).tzinfo
    assert {name: value for name, value in ours.items() if name != "modelspec.date"} == theirs
    assert 0o644 == (tmp_path / "theirs").stat().st_mode & 0o777


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a file."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
        return metadata
