"""Specs and models that cannot be trained, refused before the training libraries are imported."""

import shutil
from pathlib import Path

import msgspec
import pytest
from tests.engines.conftest import WriteRun

from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.progress import FailureReason
from training_schemas.spec import SPEC_FILE, Quantization
from training_worker.engines.common.protocol.attempt_folder import make_attempt_folder
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.diffusers.models.folder import check_model_folder
from training_worker.engines.diffusers.protocol.preflight import read_spec

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('"loraRank":4', '"loraRank":0', "$.parameters.loraRank"),
        ('"loraRank":4', '"loraRank":4,"colour":1', "$.parameters"),
        ('"attempt":1', '"attempt":0', "$.attempt"),
        ("FLUX_LORA", "SDXL_LORA", "$.parameters"),
        ("FLUX_LORA", "FLUX_DREAM", "$.trainingType"),
        ('"randomCrop":false', '"randomCrop":true', "$.parameters.randomCrop"),
        ('"shuffleCaptions":false', '"shuffleCaptions":true', "$.parameters.shuffleCaptions"),
        ("{", "", "$"),
    ],
)
def test_a_wrong_field_is_named(write_run: WriteRun, old: str, new: str, path: str) -> None:
    """By its path in the file that holds it."""
    spec = write_run() / SPEC_FILE
    spec.write_text(spec.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")

    with pytest.raises(TrainingFailure) as raised:
        read_spec(spec.parent)

    assert FailureReason.CONFIG_INVALID == raised.value.reason
    assert [path] == [fault.path for fault in raised.value.faults]


@pytest.mark.parametrize(
    ("training_type", "settings", "field"),
    [
        (TrainingType.SDXL_FINETUNE, {"quantization": Quantization.NF4}, "quantization"),
        (TrainingType.SDXL_TEXTUAL_INVERSION, {}, "triggerWord"),
    ],
)
def test_what_a_type_of_training_cannot_do_is_named(
    write_run: WriteRun, training_type: TrainingType, settings: dict[str, object], field: str
) -> None:
    """Weights that learn cannot be quantized, and an inversion needs its word."""
    with pytest.raises(TrainingFailure) as raised:
        read_spec(write_run(training_type=training_type, **settings))

    assert [f"$.parameters.{field}"] == [fault.path for fault in raised.value.faults]


def test_a_spec_is_read_back(write_run: WriteRun) -> None:
    """The parameters come as their own type."""
    spec, parameters = read_spec(write_run(lora_rank=3))

    assert msgspec.to_builtins(parameters) == spec.parameters
    assert parameters.lora_rank == 3


def test_an_attempt_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Before hours are spent on what cannot be kept."""
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(TrainingFailure, match="file/attempt") as raised:
        make_attempt_folder(tmp_path / "file" / "attempt")

    assert FailureReason.OUTPUT_INVALID == raised.value.reason


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_whole_model_passes(model: Path) -> None:
    """As diffusers writes it."""
    check_model_folder(model, ModelFamily.FLUX)


def test_a_model_of_another_family_lacks_a_part(model: Path) -> None:
    """FLUX predicts with a transformer, SDXL with a UNet."""
    with pytest.raises(TrainingFailure, match="unet: missing folder"):
        check_model_folder(model, ModelFamily.SDXL)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """Its reason differs from that of a broken one: elsewhere it may be there."""
    with pytest.raises(TrainingFailure, match="no-model: no such folder") as raised:
        check_model_folder(tmp_path / "no-model", ModelFamily.FLUX)

    assert FailureReason.MODEL_MISSING == raised.value.reason


def test_all_missing_parts_of_a_model_are_named(model: Path) -> None:
    """A download that was broken off lacks more than one."""
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(model / "tokenizer_2")

    with pytest.raises(TrainingFailure) as raised:
        check_model_folder(model, ModelFamily.FLUX)

    assert FailureReason.MODEL_INVALID == raised.value.reason
    assert [
        (str(model / "tokenizer_2"), "missing folder"),
        (str(model / "transformer"), "missing *.safetensors"),
    ] == [(fault.path, fault.reason) for fault in raised.value.faults]


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    """Such as one with a single file for other programs."""
    with pytest.raises(TrainingFailure, match=r"model_index.json: missing"):
        check_model_folder(tmp_path, ModelFamily.FLUX)


def test_pickled_weights_are_refused(model: Path) -> None:
    """To load a pickle is to run its author's code."""
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))

    with pytest.raises(TrainingFailure, match="transformer: pickled weights are refused"):
        check_model_folder(model, ModelFamily.FLUX)
