"""The choice of the engine and the model that train a job on this worker."""

from pathlib import Path
from typing import Any

import msgspec

from training_presets.engines import shortcomings
from training_presets.invoke_config import invoke_config
from training_presets.planner import Plan
from training_schemas.jobs import EngineName, ModelFamily, TrainingJob, TrainingType
from training_schemas.progress import FailureReason
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_worker.errors import AttemptError
from training_worker.settings import Settings

MODEL_INDEX_FILE = "model_index.json"

# How the names of a family's pipelines begin in diffusers.
PIPELINE_NAMES = {ModelFamily.FLUX: "Flux", ModelFamily.SDXL: "StableDiffusionXL"}

# Engines that always begin at step 0: their checkpoints are for people.
NEVER_RESUMING = {EngineName.INVOKE}

# The engines for a job that leaves the choice: the first that can. The last one can train whatever is planned for it.
PREFERENCES = {
    ModelFamily.FLUX: (EngineName.DIFFUSERS,),
    ModelFamily.SDXL: (EngineName.INVOKE, EngineName.DIFFUSERS),
}

DEFAULT_MODELS = {
    "flux": "black-forest-labs/FLUX.1-dev",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


def choose_engine(job: TrainingJob, parameters: FluxLoraParameters | SdxlParameters, settings: Settings) -> EngineName:
    """Choose the engine that trains a job with these settings on this worker. Raises `AttemptError`.

    Where the job leaves the choice, FLUX is trained by the built-in trainer, and SDXL by invoke-training, if this
    worker has it and it supports all the settings. Another worker may have the engine that this one lacks.
    """
    kind = job.training_type
    for name in PREFERENCES[kind.family] if job.engine is EngineName.AUTO else (job.engine,):
        engine = settings.engines.get(name)
        able = engine is not None and kind in engine.training_types
        if able and not shortcomings(name, kind, parameters, job.gpu_count):
            return name
    raise AttemptError(FailureReason.HOST_UNFIT, f"cannot train {kind}: this worker has no engine {job.engine} for it")


def served_types(settings: Settings) -> set[TrainingType]:
    """Return the training types of which this worker can train each job that leaves the choice of the engine.

    Other engines are for jobs that ask for them, or are tried before the last one: to have only one of those is not
    enough, since a queue holds jobs of all engines, and what cannot be trained here counts towards the job's attempts.
    """
    last = {family: settings.engines.get(names[-1]) for family, names in PREFERENCES.items()}
    return {
        kind for kind in TrainingType if (engine := last[kind.family]) is not None and kind in engine.training_types
    }


class ModelIndex(msgspec.Struct, frozen=True):
    """The part of a pipeline's ``model_index.json`` that identifies its family."""

    pipeline: str = msgspec.field(name="_class_name")


def model_families(settings: Settings) -> set[ModelFamily]:
    """Return the families of the models that jobs may use here; a folder that names none may be of any."""
    known = [_family_of(folder) for folder in settings.models.values()]
    return set(ModelFamily) if None in known else {family for family in known if family is not None}


def _family_of(folder: Path) -> ModelFamily | None:
    try:
        index = msgspec.json.decode((folder / MODEL_INDEX_FILE).read_bytes(), type=ModelIndex)
    except (OSError, ValueError):
        return None
    return next((family for family, name in PIPELINE_NAMES.items() if index.pipeline.startswith(name)), None)


def engine_config(engine: EngineName, plan: Plan, parameters: FluxLoraParameters | SdxlParameters) -> dict[str, Any]:
    """Return the run in the engine's own format, if that is not ours."""
    return invoke_config(plan.training_type, parameters, plan.upstream) if engine is EngineName.INVOKE else {}


def model_folder(job: TrainingJob, settings: Settings) -> Path:
    name = job.model or DEFAULT_MODELS[job.training_type.family]
    if name not in settings.models:
        known = ", ".join(settings.models) or "none"
        raise AttemptError(
            FailureReason.MODEL_MISSING, f"cannot train: model {name!r} is not allowed on this worker; allowed: {known}"
        )
    if not settings.models[name].is_dir():
        raise AttemptError(FailureReason.MODEL_MISSING, f"cannot train: no model folder at {settings.models[name]}")
    return settings.models[name]
