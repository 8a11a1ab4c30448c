"""An attempt: one owned job on one card, from its settings to a spec that a trainer can run, and to its result."""

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import structlog

from training_presets.disk import DiskNeed, disk_need
from training_presets.engines import shortcomings
from training_presets.invoke_config import invoke_config
from training_presets.planner import DoesNotFitError, Plan, fit
from training_presets.presets import default_preset
from training_presets.tiers import MINIMUM_TIERS
from training_presets.workload import Workload, workload_of
from training_schemas.jobs import CostOptimization, EngineName, ModelFamily, TrainingJob, TrainingType
from training_schemas.ledger import CheckpointSaved
from training_schemas.plans import Prediction
from training_schemas.progress import DoneRecord, FailureReason
from training_schemas.spec import PARAMETERS, FluxLoraParameters, RunSpec, SdxlParameters
from training_schemas.usage import Usage
from training_worker.cards import Room
from training_worker.errors import AttemptError
from training_worker.history import JobHistory
from training_worker.paths import path_faults
from training_worker.queued_job import QueuedJob
from training_worker.reservations import Reservation, Shortage
from training_worker.run import Run
from training_worker.run_folder import attempt_path, caches_dir, fsync_folder, run_path
from training_worker.settings import Settings
from training_worker.version import __version__

log = structlog.get_logger()

MANIFEST_FILE = "manifest.json"
MODEL_INDEX_FILE = "model_index.json"

# How the names of a family's pipelines begin in diffusers.
PIPELINE_NAMES = {ModelFamily.FLUX: "Flux", ModelFamily.SDXL: "StableDiffusionXL"}

# Engines that begin anew whatever there is: their checkpoints are for people.
NEVER_RESUMING = {EngineName.INVOKE}

# Which engine a job that leaves the choice gets: the first that can. The last one can train whatever is planned for it.
PREFERENCES = {
    ModelFamily.FLUX: (EngineName.DIFFUSERS,),
    ModelFamily.SDXL: (EngineName.INVOKE, EngineName.DIFFUSERS),
}

DEFAULT_MODELS = {
    "flux": "black-forest-labs/FLUX.1-dev",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


def choose_engine(job: TrainingJob, parameters: FluxLoraParameters | SdxlParameters, settings: Settings) -> EngineName:
    """The engine that trains a job with these settings on this worker. Raises `AttemptError`.

    Where the job leaves the choice, FLUX is the built-in trainer's, and SDXL invoke-training's, if it is here and has
    all that the settings ask for. Another worker may have the engine that this one lacks.
    """
    kind = job.training_type
    for name in PREFERENCES[kind.family] if job.engine is EngineName.AUTO else (job.engine,):
        engine = settings.engines.get(name)
        able = engine is not None and kind in engine.training_types
        if able and not shortcomings(name, kind, parameters, job.gpu_count):
            return name
    raise AttemptError(FailureReason.HOST_UNFIT, f"cannot train {kind}: this worker has no engine {job.engine} for it")


def served_types(settings: Settings) -> set[TrainingType]:
    """The training types of which this worker can train each job that leaves the choice of the engine.

    Other engines are for jobs that ask for them, or in their turn before the last: to have one of those alone is not
    enough, since a queue holds jobs of all engines, and what cannot be trained here counts to the job's attempts.
    """
    last = {family: settings.engines.get(names[-1]) for family, names in PREFERENCES.items()}
    return {
        kind for kind in TrainingType if (engine := last[kind.family]) is not None and kind in engine.training_types
    }


class ModelIndex(msgspec.Struct, frozen=True):
    """What of a pipeline's ``model_index.json`` tells its family."""

    pipeline: str = msgspec.field(name="_class_name")


def model_families(settings: Settings) -> set[ModelFamily]:
    """The families of the models that jobs may use here; a folder that says nothing may be of any."""
    known = [_family_of(folder) for folder in settings.models.values()]
    return set(ModelFamily) if None in known else {family for family in known if family is not None}


def _family_of(folder: Path) -> ModelFamily | None:
    try:
        index = msgspec.json.decode((folder / MODEL_INDEX_FILE).read_bytes(), type=ModelIndex)
    except (OSError, ValueError):
        return None
    return next((family for family, name in PIPELINE_NAMES.items() if index.pipeline.startswith(name)), None)


def output_folder(job: TrainingJob) -> Path:
    """Where the result goes: no link and no `..`, which no rename could replace."""
    return Path(job.output_path).resolve()


def attempt_folder(job: TrainingJob, attempt: int) -> Path:
    """Where an attempt at a job writes."""
    return attempt_path(output_folder(job), job.job_id, attempt)


def stepped_down(plan: Plan, before: JobHistory) -> FluxLoraParameters | SdxlParameters:
    """The plan's settings, a step further down the ladder for each time that the job has run out of memory."""
    if not before.out_of_memory:
        return plan.parameters
    ladder = plan.ladder
    return ladder[min(before.out_of_memory, len(ladder)) - 1] if ladder else plan.parameters


def fitted(plan: Plan, before: JobHistory, memory_mib: int) -> FluxLoraParameters | SdxlParameters:
    """The settings for a card with so much free memory, after what has happened before. Raises `AttemptError`."""
    try:
        # What ran out of memory was what had room by the model: the next try is below that, not below the plan.
        return stepped_down(fit(plan, memory_mib), before)
    except DoesNotFitError as error:
        raise AttemptError(FailureReason.HOST_UNFIT, f"cannot train on this card: the job {error}") from None


def crowded_out(plan: Plan, room: Room) -> int | None:
    """How many MiB a job needs at least, if the card would have them and nothing but others' use keeps it out."""
    try:
        fit(plan, room.free_mib)
    except DoesNotFitError as error:
        return error.needed_mib if error.needed_mib <= room.card.memory_mib else None
    return None


def changes(plan: Plan, parameters: dict[str, Any]) -> dict[str, Any]:
    """What of a spec's parameters differs from the plan's, by its name on the wire."""
    planned = msgspec.to_builtins(plan.parameters)
    return {name: value for name, value in parameters.items() if planned[name] != value}


def resolve_spec(  # noqa: PLR0913, PLR0917 - all that decides it
    queued: QueuedJob, attempt: int, before: JobHistory, room: Room, settings: Settings, reservation: Reservation
) -> RunSpec:
    """Settle everything that a trainer must know, on a card with so much room; what it will write is reserved.

    Raises `AttemptError`, naming what is missing and where.
    """
    job = queued.job
    if faults := path_faults(job, settings):
        raise AttemptError(FailureReason.CONFIG_INVALID, "cannot train: a path is not allowed on this host", faults)
    # Unlike Path.exists, this has an answer for a name that no disk can hold.
    if not os.path.exists(job.dataset_path):  # noqa: PTH110
        raise AttemptError(FailureReason.DATASET_MISSING, f"cannot train: no data set at {job.dataset_path}")
    parameters = fitted(queued.plan, before, room.free_mib)
    engine = choose_engine(job, parameters, settings)
    _reserve(queued, attempt, parameters, room, settings, reservation)
    return RunSpec(
        job_id=job.job_id,
        attempt=attempt,
        training_type=job.training_type,
        engine=engine,
        model_path=str(_model_folder(job, settings)),
        dataset_path=job.dataset_path,
        attempt_path=str(_make_attempt_folder(job, attempt)),
        resume_from=None if engine in NEVER_RESUMING else _resume_path(before),
        device="cpu" if room.card.simulated else "cuda",
        parameters=msgspec.to_builtins(parameters),
        cache_path=str(caches_dir(settings.state_dir)),
        cache_limit_mib=int(settings.cache_limit * 1024),
        gpu_count=job.gpu_count,
        engine_config=engine_config(engine, queued.plan, parameters),
    )


def _reserve(  # noqa: PLR0913, PLR0917 - all that decides it
    queued: QueuedJob,
    attempt: int,
    parameters: FluxLoraParameters | SdxlParameters,
    room: Room,
    settings: Settings,
    reservation: Reservation,
) -> None:
    """Raises `AttemptError` if the run has no room on this host's disks."""
    if room.card.simulated:
        # So are the models that it trains: tiny ones, of which the model of disk knows nothing.
        return
    job = queued.job
    need = need_of(workload_of(queued.plan.training_type, parameters, gpu_count=job.gpu_count), parameters)
    run, folder = run_path(settings.state_dir, job.job_id, attempt), attempt_folder(job, attempt)
    try:
        shortage = reservation.take(need, output_folder(job), run, folder)
    except OSError as error:
        shortage = Shortage(text=f"the free space is not known: {error}", passes=False)
    if shortage is not None:
        raise AttemptError(FailureReason.HOST_UNFIT, f"cannot train: no room on the disk: {shortage.text}")


def need_of(work: Workload, parameters: FluxLoraParameters | SdxlParameters) -> DiskNeed:
    """What a run with these settings writes."""
    return disk_need(work, keep_checkpoints=parameters.keep_checkpoints, sample_every=parameters.sample_every)


def reserve_as_planned(queued: QueuedJob, reservation: Reservation, settings: Settings) -> Shortage | None:
    """Reserve what a job needs by its plan, before it is claimed. None if it has the room, or its claim will tell."""
    plan = queued.plan
    if path_faults(queued.job, settings):
        return None
    need = need_of(workload_of(plan.training_type, plan.parameters, gpu_count=plan.gpu_count), plan.parameters)
    try:
        return reservation.take(need, output_folder(queued.job))
    except OSError:
        return None


def keep_reserved(run: Run, reservation: Reservation) -> None:
    """Reserve what a run that is there still needs. Never fails: at worst nothing is reserved."""
    spec = run.spec
    try:
        need = need_of(workload_of_spec(spec), parameters_of_spec(spec))
        reservation.keep(need, output_folder(run.record.job), run.folder.path, Path(spec.attempt_path))
    except (OSError, ValueError) as error:
        log.warning("room_not_reserved", job=spec.job_id, error=str(error))


def engine_config(engine: EngineName, plan: Plan, parameters: FluxLoraParameters | SdxlParameters) -> dict[str, Any]:
    """The run in the engine's own words, where they are not ours."""
    return invoke_config(plan.training_type, parameters, plan.upstream) if engine is EngineName.INVOKE else {}


def workload_of_spec(spec: RunSpec) -> Workload:
    """What a spec says, as the models of memory and time see it.

    A daemon of an earlier version may have written it: settings that are newer have their defaults.
    """
    return workload_of(spec.training_type, parameters_of_spec(spec), gpu_count=spec.gpu_count)


def parameters_of_spec(spec: RunSpec) -> FluxLoraParameters | SdxlParameters:
    """The settings of a spec, as `workload_of_spec` reads them."""
    family = spec.training_type.family
    defaults = default_preset(family, MINIMUM_TIERS[spec.training_type], CostOptimization.BALANCED).parameters
    return msgspec.convert(defaults | spec.parameters, PARAMETERS[family])


def _model_folder(job: TrainingJob, settings: Settings) -> Path:
    name = job.model or DEFAULT_MODELS[job.training_type.family]
    if name not in settings.models:
        known = ", ".join(settings.models) or "none"
        raise AttemptError(
            FailureReason.MODEL_MISSING, f"cannot train: model {name!r} is not allowed on this worker; allowed: {known}"
        )
    if not settings.models[name].is_dir():
        raise AttemptError(FailureReason.MODEL_MISSING, f"cannot train: no model folder at {settings.models[name]}")
    return settings.models[name]


def _make_attempt_folder(job: TrainingJob, attempt: int) -> Path:
    output, folder = output_folder(job), attempt_folder(job, attempt)
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise AttemptError(FailureReason.OUTPUT_INVALID, f"cannot write output: {output} exists and is not empty")
        # Left by an attempt of the same number whose claim was never confirmed: nobody will ask for it.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise AttemptError(FailureReason.OUTPUT_INVALID, f"cannot write output: {error}") from None
    return folder


def resume_point(before: JobHistory) -> CheckpointSaved | None:
    """The last checkpoint that can be read on this host."""
    return next((saved for saved in reversed(before.checkpoints) if Path(saved.path).is_dir()), None)


def _resume_path(before: JobHistory) -> str | None:
    saved = resume_point(before)
    return None if saved is None else saved.path


class Account(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the last attempt at a result was planned to take, and took; times are unix seconds."""

    started_at: float
    finished_at: float
    usage: Usage
    predicted: Prediction | None
    changes: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the output says about itself, in ``manifest.json``."""

    job: TrainingJob
    worker_version: str
    spec: RunSpec
    result: DoneRecord
    account: Account | None = None


def read_result(job: TrainingJob) -> DoneRecord | None:
    """How the job ended, if its finished result is there already: the ledger forgets after a while."""
    try:
        manifest = msgspec.json.decode((output_folder(job) / MANIFEST_FILE).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
    return manifest.result if manifest.job == job else None


def promote(job: TrainingJob, spec: RunSpec, result: DoneRecord, account: Account) -> DoneRecord:
    """Make a finished attempt the job's output, by one rename, and drop what earlier ones left.

    Done before, it is not done again: a daemon may have died right after it. Returns what stands in the job's output.

    Raises `AttemptError` if the output cannot be written any more.
    """
    manifest = Manifest(job=job, worker_version=__version__, spec=spec, result=result, account=account)
    folder, output = Path(spec.attempt_path), output_folder(job)
    there = read_result(job)
    if there is None:
        _move(manifest, folder, output)
    for earlier in range(1, spec.attempt):
        shutil.rmtree(attempt_folder(job, earlier), ignore_errors=True)
    return there or result


def _move(manifest: Manifest, folder: Path, output: Path) -> None:
    try:
        (folder / MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        folder.rename(output)
        fsync_folder(output.parent)
    except OSError as error:
        raise AttemptError(FailureReason.OUTPUT_INVALID, f"cannot write output: {error}") from None
