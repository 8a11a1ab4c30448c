"""The disk space that a run needs, reserved before it begins."""

from pathlib import Path

import structlog

from training_presets.disk import DiskNeed, disk_need
from training_presets.workload import Workload, workload_of
from training_schemas.progress import FailureReason
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_worker.attempts.workloads import parameters_of_spec, workload_of_spec
from training_worker.errors import AttemptError
from training_worker.gpu.devices import Room
from training_worker.queue.allowed_paths import path_faults
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.run import Run
from training_worker.runs.state_layout import attempt_folder, output_folder, run_path
from training_worker.settings import Settings
from training_worker.storage.reservations import Reservation, Shortage

log = structlog.get_logger()


def reserve(  # noqa: PLR0913, PLR0917 - all that decides it
    queued: QueuedJob,
    attempt: int,
    parameters: FluxLoraParameters | SdxlParameters,
    room: Room,
    settings: Settings,
    reservation: Reservation,
) -> None:
    """Reserve what a run will write. Raises `AttemptError` if this host's disks have no room for it."""
    if room.device.simulated:
        # A simulated GPU trains tiny models, which the model of disk space does not cover.
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
    """Return what a run with these settings writes."""
    return disk_need(work, keep_checkpoints=parameters.keep_checkpoints, sample_every=parameters.sample_every)


def reserve_as_planned(queued: QueuedJob, reservation: Reservation, settings: Settings) -> Shortage | None:
    """Reserve what a job needs by its plan, before its claim. None if it has the room, or its claim will fail."""
    plan = queued.plan
    if path_faults(queued.job, settings):
        return None
    need = need_of(workload_of(plan.training_type, plan.parameters, gpu_count=plan.gpu_count), plan.parameters)
    try:
        return reservation.take(need, output_folder(queued.job))
    except OSError:
        return None


def keep_reserved(run: Run, reservation: Reservation) -> None:
    """Reserve what an existing run still needs. Never fails: at worst nothing is reserved."""
    spec = run.spec
    try:
        need = need_of(workload_of_spec(spec), parameters_of_spec(spec))
        reservation.keep(need, output_folder(run.record.job), run.folder.path, Path(spec.attempt_path))
    except (OSError, ValueError) as error:
        log.warning("room_not_reserved", job=spec.job_id, error=str(error))
