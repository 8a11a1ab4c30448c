"""What is read and checked before the training libraries are imported, so that mistakes are told within a second."""

from pathlib import Path

import msgspec

from training_schemas.jobs import TrainingType
from training_schemas.progress import FailureReason, Fault
from training_schemas.spec import SPEC_FILE, FluxLoraParameters, RunSpec
from training_worker.engines.diffusers.failures import TrainingFailure


def read_spec(folder: Path) -> tuple[RunSpec, FluxLoraParameters]:
    """Read the spec of a run folder.

    Raises:
        TrainingFailure: It is missing, invalid, or not for this trainer; it names the first wrong field.
    """
    path = folder / SPEC_FILE
    try:
        spec = msgspec.json.decode(path.read_bytes(), type=RunSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise _invalid(path, error, "$") from error
    if spec.training_type is not TrainingType.FLUX_LORA:
        raise _invalid(path, ValueError(f"this trainer does not know {spec.training_type}"), "$.trainingType")
    try:
        return spec, msgspec.convert(spec.parameters, FluxLoraParameters)
    except msgspec.ValidationError as error:
        raise _invalid(path, error, "$.parameters") from error


def make_attempt_folder(path: Path) -> None:
    """Make sure that results can be written.

    Raises:
        TrainingFailure: They cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        message = f"cannot write to attempt folder {path}: {error.strerror}"
        raise TrainingFailure(FailureReason.OUTPUT_INVALID, message) from error


def _invalid(path: Path, error: Exception, root: str) -> TrainingFailure:
    """Name the field, which msgspec puts at the end of its messages as ``- at `$.field```."""
    reason, _, field = str(error).partition(" - at `$")
    fault = Fault(path=root + field.removesuffix("`"), reason=reason)
    return TrainingFailure(FailureReason.CONFIG_INVALID, f"cannot use {path}: {fault.path}: {reason}", [fault])
