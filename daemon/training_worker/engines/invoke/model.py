"""The base model's folder, looked at without loading anything."""

import json
from collections.abc import Iterator
from pathlib import Path

from ..common.protocol.failures import Fault, TrainingFailure, failure_of_faults
from .spec import FLUX

INDEX = "model_index.json"
MAX_HEADER = 100 * 2**20  # that of safetensors itself


def check_model(folder: Path, training_type: str) -> None:
    """Look at the base model without loading it.

    Raises:
        TrainingFailure: It is missing, of another family, incomplete, or as transformers 4 would read it wrongly.
    """
    if not folder.is_dir():
        raise TrainingFailure("modelMissing", f"cannot load model {folder}: no such folder")
    flux = training_type == FLUX
    try:
        name = json.loads((folder / INDEX).read_bytes())["_class_name"]
        faults = _part_faults(folder, flux)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise failure_of_faults(
            "modelInvalid", f"cannot load model {folder}", [Fault(str(folder / INDEX), str(error))]
        ) from error
    if not name.startswith("Flux" if flux else "StableDiffusionXL"):
        faults = [Fault(str(folder / INDEX), f"a {name}, which {training_type} cannot be trained on")]
    if faults:
        raise failure_of_faults("modelInvalid", f"cannot load model {folder}", faults)


def _part_faults(folder: Path, flux: bool) -> list[Fault]:
    parts = ("transformer" if flux else "unet", "vae", "text_encoder", "text_encoder_2")
    faults = [Fault(str(folder / part), "no .safetensors here") for part in parts if not _weights_of(folder / part)]
    clip = folder / "text_encoder"
    if _weights_of(clip) and not any(name.startswith("text_model.") for name in tensor_names(clip)):
        reason = "saved by transformers 5, from which version 4 would read random weights: no key has text_model."
        faults.append(Fault(str(clip), reason))
    tokenizers = ("tokenizer",) if flux else ("tokenizer", "tokenizer_2")
    files = [folder / part / name for part in tokenizers for name in ("vocab.json", "merges.txt")]
    return faults + [Fault(str(file), "missing; transformers 4 needs it") for file in files if not file.is_file()]


def _weights_of(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors"))


def tensor_names(part: Path) -> Iterator[str]:
    """List the tensors in a part's files, by their headers alone."""
    for path in _weights_of(part):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
        if not isinstance(header, dict):
            raise ValueError(f"{path} is no file of safetensors")  # noqa: TRY004 # as where it is no JSON
        yield from header.keys() - {"__metadata__"}
