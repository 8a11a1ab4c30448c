"""What is to be trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.protocol.failures import Fault, failure_of_faults

SPEC_FILE = "spec.json"
# Upstream's own folder in the attempt's.
UPSTREAM = "upstream"

# Where the spec names none: without cuDNN's, whose gradients are no numbers on some GPUs.
USUAL_KERNELS = ("flash_attention", "efficient_attention", "math")

FLUX, INVERSION, FINETUNE = "FLUX_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"


@dataclass(frozen=True)
class Spec:
    """The fields of ``spec.json`` that matter here; ``config`` is upstream's, but for its paths.

    ``attention_kernels`` are those of torch that may be used, by the names of its ``SDPBackend`` in lower case.
    """

    job_id: str
    training_type: str
    model: Path
    dataset: Path
    attempt: Path
    device: str
    parameters: dict[str, Any]
    config: dict[str, Any]
    resume_from: str | None
    attention_kernels: tuple[str, ...] = USUAL_KERNELS

    @property
    def total(self) -> int:
        """How many optimizer steps are to be taken."""
        return int(self.parameters["maxTrainSteps"])

    @property
    def upstream(self) -> Path:
        """Where upstream writes."""
        return self.attempt / UPSTREAM


def read_spec(folder: Path) -> Spec:
    """Read the spec of a run folder.

    Raises:
        TrainingFailure: It is missing, or not one for this engine.
    """
    path = folder / SPEC_FILE
    try:
        fields = json.loads(path.read_bytes())
        return Spec(
            job_id=fields["jobId"],
            training_type=fields["trainingType"],
            model=Path(fields["modelPath"]),
            dataset=Path(fields["datasetPath"]),
            attempt=Path(fields["attemptPath"]),
            device=fields["device"],
            parameters=fields["parameters"],
            config=_config_of(fields),
            resume_from=fields.get("resumeFrom"),
            attention_kernels=tuple(fields.get("execution", {}).get("attentionKernels", USUAL_KERNELS)),
        )
    except KeyError as error:
        raise failure_of_faults(
            "configInvalid", f"cannot use {path}", [Fault(f"$.{error.args[0]}", "missing")]
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise failure_of_faults("configInvalid", f"cannot use {path}", [Fault("$", str(error))]) from error


def _config_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Upstream's own settings; for the other engine the daemon writes none."""
    config: dict[str, Any] = fields["engineConfig"]
    if not config:
        raise KeyError("engineConfig")
    return config
