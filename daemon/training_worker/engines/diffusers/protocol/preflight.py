"""What is read and checked before the training libraries are imported: mistakes are reported within a second."""

from pathlib import Path

import msgspec

from training_schemas.jobs import TrainingType
from training_schemas.progress import FailureReason
from training_schemas.spec import (
    PARAMETERS,
    SPEC_FILE,
    FluxLoraParameters,
    Quantization,
    RunSpec,
    SdxlParameters,
    WeightDtype,
)
from training_worker.engines.common.protocol.failures import Fault, TrainingFailure, failure_of_faults


def read_spec(folder: Path) -> tuple[RunSpec, FluxLoraParameters | SdxlParameters]:
    """Read the spec of a run folder.

    Raises:
        TrainingFailure: It is missing or invalid, or its settings contradict each other; it names a wrong field.
    """
    path = folder / SPEC_FILE
    try:
        spec = msgspec.json.decode(path.read_bytes(), type=RunSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise _invalid(path, error, "$") from error
    try:
        parameters = msgspec.convert(spec.parameters, PARAMETERS[spec.training_type.family])
    except msgspec.ValidationError as error:
        raise _invalid(path, error, "$.parameters") from error
    if contradiction := _contradiction(spec.training_type, parameters):
        field, reason = contradiction
        raise _invalid(path, ValueError(reason), f"$.parameters.{field}")
    return spec, parameters


def _contradiction(
    training_type: TrainingType, settings: FluxLoraParameters | SdxlParameters
) -> tuple[str, str] | None:
    """A setting that cannot be with others, and why."""
    if settings.random_crop and settings.cache_vae_outputs:
        return "randomCrop", "an image that was encoded before cannot be cropped again; cacheVaeOutputs must be false"
    if settings.shuffle_captions and settings.cache_text_encoder_outputs:
        return "shuffleCaptions", "a shuffled caption is encoded at each step; cacheTextEncoderOutputs must be false"
    if training_type is TrainingType.SDXL_FINETUNE and settings.quantization is not Quantization.NONE:
        return "quantization", "weights that learn cannot be quantized"
    if training_type is TrainingType.SDXL_FINETUNE and settings.weight_dtype is WeightDtype.FLOAT16:
        return "weightDtype", "weights that learn in float16 lose small gradients; bfloat16 or float32"
    if training_type is TrainingType.SDXL_TEXTUAL_INVERSION and not settings.trigger_word:
        return "triggerWord", "a textual inversion needs the word that stands for what it learns"
    return None


def _invalid(path: Path, error: Exception, root: str) -> TrainingFailure:
    """Name the field, which msgspec puts at the end of its messages as ``- at `$.field```."""
    reason, _, field = str(error).partition(" - at `$")
    fault = Fault(path=root + field.removesuffix("`"), reason=reason)
    return failure_of_faults(FailureReason.CONFIG_INVALID, f"cannot use {path}", [fault])
