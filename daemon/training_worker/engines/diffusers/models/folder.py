"""The base model's folder, looked at without loading anything: its parts are there, and are safetensors."""

from pathlib import Path

from training_schemas.jobs import ModelFamily
from training_schemas.progress import FailureReason
from training_worker.engines.common.protocol.failures import Fault, TrainingFailure

INDEX = "model_index.json"
WEIGHTS = "*.safetensors"
# Each part of a pipeline and the files that it cannot do without, as patterns.
COMMON_PARTS = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("tokenizer*.json",),
    "tokenizer_2": ("tokenizer*.json",),
    "text_encoder": ("config.json", WEIGHTS),
    "text_encoder_2": ("config.json", WEIGHTS),
    "vae": ("config.json", WEIGHTS),
}
DENOISERS = {ModelFamily.FLUX: "transformer", ModelFamily.SDXL: "unet"}


def check_model_folder(folder: Path, family: ModelFamily) -> None:
    """Check that a pipeline of a family, in the layout of diffusers, is complete.

    Raises:
        TrainingFailure: The folder is missing, or parts of it are; it names them all.
    """
    if not folder.is_dir():
        raise TrainingFailure(FailureReason.MODEL_MISSING, f"cannot load model {folder}: no such folder")
    if not (folder / INDEX).is_file():
        fault = Fault(path=str(folder / INDEX), reason="missing; is this a pipeline folder of diffusers?")
        raise _invalid(folder, [fault])
    parts = {**COMMON_PARTS, DENOISERS[family]: ("config.json", WEIGHTS)}
    faults = [fault for part, patterns in parts.items() for fault in _check_part(folder / part, patterns)]
    if faults:
        raise _invalid(folder, faults)


def _check_part(part: Path, patterns: tuple[str, ...]) -> list[Fault]:
    if not part.is_dir():
        return [Fault(path=str(part), reason="missing folder")]
    missing = [pattern for pattern in patterns if not any(part.glob(pattern))]
    return [Fault(path=str(part), reason=_missing_reason(part, pattern)) for pattern in missing]


def _missing_reason(part: Path, pattern: str) -> str:
    if pattern == WEIGHTS and any(file.suffix in {".bin", ".pt", ".pth", ".ckpt"} for file in part.iterdir()):
        return "pickled weights are refused, since loading them runs code; save them as safetensors"
    return f"missing {pattern}"


def _invalid(folder: Path, faults: list[Fault]) -> TrainingFailure:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = f"cannot load model {folder}: {Path(first.path).name}: {first.reason}{more}"
    return TrainingFailure(FailureReason.MODEL_INVALID, message, faults)
