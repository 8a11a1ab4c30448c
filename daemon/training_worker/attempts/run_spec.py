"""The spec of an attempt: a job's plan, fitted to one GPU, in the form that a trainer can run."""

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import structlog

from training_presets.fastest import Choice
from training_presets.planner import DoesNotFitError, Plan, fit
from training_schemas.jobs import TrainingJob
from training_schemas.progress import FailureReason
from training_schemas.spec import RunSpec
from training_worker.attempts.disk_needs import reserve
from training_worker.attempts.engine_selection import (
    NEVER_RESUMING,
    choose_engine,
    engine_config,
    model_folder,
)
from training_worker.attempts.plan_choice import choice_for
from training_worker.attempts.run_history import resume_point
from training_worker.errors import AttemptError
from training_worker.gpu.devices import Room
from training_worker.ledger.job_history import JobHistory
from training_worker.queue.allowed_paths import path_faults
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.state_layout import attempt_folder, caches_dir, output_folder
from training_worker.settings import Settings
from training_worker.storage.reservations import Reservation

log = structlog.get_logger()


def crowded_out(plan: Plan, room: Room) -> int | None:
    """Return how many MiB a job needs at least, if the GPU has them and only others' use of it leaves no room."""
    try:
        fit(plan, room.free_mib)
    except DoesNotFitError as error:
        return error.needed_mib if error.needed_mib <= room.device.memory_mib else None
    return None


def changes(plan: Plan, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return what of a spec's parameters differs from the plan's, by its name on the wire."""
    planned = msgspec.to_builtins(plan.parameters)
    return {name: value for name, value in parameters.items() if planned[name] != value}


class Resolved(msgspec.Struct, frozen=True):
    """A spec, and the choice that its settings come from."""

    spec: RunSpec
    choice: Choice


def resolve_spec(  # noqa: PLR0913, PLR0917 - all that decides it
    queued: QueuedJob, attempt: int, before: JobHistory, room: Room, settings: Settings, reservation: Reservation
) -> Resolved:
    """Resolve everything that a trainer must know, on a GPU with this much room; reserve what it will write.

    Raises `AttemptError`, naming what is missing and where.
    """
    job = queued.job
    if faults := path_faults(job, settings):
        raise AttemptError(FailureReason.CONFIG_INVALID, "cannot train: a path is not allowed on this host", faults)
    # Unlike Path.exists, this has an answer for a name that no disk can hold.
    if not os.path.exists(job.dataset_path):  # noqa: PTH110
        raise AttemptError(FailureReason.DATASET_MISSING, f"cannot train: no data set at {job.dataset_path}")
    engine = choose_engine(job, queued.plan.parameters, settings)
    choice = choice_for(queued.plan, before, room, engine, settings)
    parameters = choice.parameters
    reserve(queued, attempt, parameters, room, settings, reservation)
    spec = RunSpec(
        job_id=job.job_id,
        attempt=attempt,
        training_type=job.training_type,
        engine=engine,
        model_path=str(model_folder(job, settings)),
        dataset_path=job.dataset_path,
        attempt_path=str(_make_attempt_folder(job, attempt)),
        resume_from=None if engine in NEVER_RESUMING else _resume_path(before),
        device="cpu" if room.device.simulated else "cuda",
        parameters=msgspec.to_builtins(parameters),
        cache_path=str(caches_dir(settings.state_dir)),
        cache_limit_mib=int(settings.cache_limit * 1024),
        gpu_count=job.gpu_count,
        engine_config=engine_config(engine, queued.plan, parameters),
        execution=choice.execution,
    )
    return Resolved(spec, choice)


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


def _resume_path(before: JobHistory) -> str | None:
    saved = resume_point(before)
    return None if saved is None else saved.path
