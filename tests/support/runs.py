"""Run folders as a daemon makes them, and the records that a trainer leaves there."""

import time
from pathlib import Path
from typing import Any

import msgspec

from training_schemas.jobs import EngineName, TrainingType
from training_schemas.progress import (
    AnyRecord,
    Artifact,
    CheckpointRecord,
    DatasetRecord,
    DatasetSummary,
    DoneRecord,
    FailedRecord,
    FailureReason,
    Fault,
    Phase,
    PhaseRecord,
    SampleRecord,
    StepRecord,
    StoppedRecord,
    WarningRecord,
)
from training_schemas.spec import Execution, RunLease, RunSpec
from training_worker.attempts.timings import Timings
from training_worker.client.job_builder import flux_lora_job
from training_worker.gpu.devices import GpuDevice
from training_worker.ledger.job_history import ClaimRecord, JobHistory
from training_worker.observations import unobserved
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.run import Run, RunRecord
from training_worker.runs.run_directory import RunDirectory

GPU = GpuDevice(uuid="GPU-1", name="NVIDIA L4", memory_mib=23034, simulated=False, usd_per_hour=3.6)
LEASE = RunLease(deadline=1000.0, max_isolation=1800.0)
SPEC = RunSpec(
    job_id="portrait",
    attempt=2,
    training_type=TrainingType.FLUX_LORA,
    engine=EngineName.DIFFUSERS,
    model_path="/models/flux",
    dataset_path="/datasets/set",
    attempt_path="/models/.portrait.portrait.2",
    resume_from=None,
    device="cuda",
    parameters={"loraRank": 16, "validationPrompts": ["a cät"]},
    cache_path="/var/lib/training-worker/caches",
    cache_limit_mib=1024,
    gpu_count=2,
    engine_config={"seed": 0},
    execution=Execution(compiled=True),
)
RECORD = RunRecord(
    job=flux_lora_job(job_id="portrait", dataset_path="/datasets/set", output_path="/models/portrait"),
    submitted_at=1000.5,
    claim_record=ClaimRecord(claim="c2", before=JobHistory(digest="d", claim="c1", counted=1)),
    device=GPU,
    engine=EngineName.DIFFUSERS,
    changes={"batchSize": 2},
    resumed_step=5,
    started_at=2000.25,
)


def make_run(state_dir: Path, job_id: str = "portrait", started_at: float = 2000.25) -> Run:
    """A run that was just made."""
    spec = msgspec.structs.replace(SPEC, job_id=job_id)
    record = msgspec.structs.replace(
        RECORD, job=msgspec.structs.replace(RECORD.job, job_id=job_id), started_at=started_at
    )
    folder = RunDirectory.create(state_dir, spec, LEASE, record)
    queued = QueuedJob.submitted(msgspec.json.encode(record.job), record.submitted_at)
    return Run(folder=folder, spec=spec, record=record, queued=queued)


def unmeasured() -> Timings:
    """Timings that nobody reads."""
    return Timings(unobserved, TrainingType.FLUX_LORA, GPU.uuid)


def make_folder(state_dir: Path) -> RunDirectory:
    """Its folder alone."""
    return make_run(state_dir).folder


def append(folder: RunDirectory, *records: AnyRecord) -> None:
    """Write records as a trainer does: each of them whole."""
    with folder.progress.open("ab", buffering=0) as file:
        for record in records:
            file.write(msgspec.json.encode(record) + b"\n")


def phase(name: Phase = Phase.TRAINING, at: float | None = None) -> PhaseRecord:
    """A phase began."""
    return PhaseRecord(sequence=1, time=_time(at), phase=name)


def dataset() -> DatasetRecord:
    """The data set was checked."""
    summary = DatasetSummary(
        images=2, samples=2, buckets={"64x64": 2}, masks=0, captions=2, enlarged=0, duplicates=0, digest="d"
    )
    return DatasetRecord(sequence=1, time=_time(None), summary=summary)


def step(number: int, loss: float | None = 0.5, at: float | None = None) -> StepRecord:
    """A step was completed."""
    return StepRecord(sequence=1, time=_time(at), step=number, total_steps=100, loss=loss, learning_rate=1e-4)


def checkpoint(number: int, at: float | None = None) -> CheckpointRecord:
    """A checkpoint was saved."""
    return CheckpointRecord(sequence=1, time=_time(at), step=number, path=f"/c{number}")


def sample(number: int) -> SampleRecord:
    """A sample image was drawn."""
    return SampleRecord(sequence=1, time=_time(None), step=number, path="/a.png", prompt="a cat")


def warning(message: str = "odd") -> WarningRecord:
    """Something to know."""
    return WarningRecord(sequence=1, time=_time(None), message=message)


def done() -> DoneRecord:
    """The run ended well."""
    artifact = Artifact(path="adapter.safetensors", kind="adapter", size_bytes=3, sha256="00")
    losses: dict[str, Any] = {"first_loss": 1.0, "last_loss": 0.5, "fixed_loss_before": 1.0, "fixed_loss_after": 0.5}
    return DoneRecord(sequence=1, time=_time(None), steps=10, artifacts=[artifact], **losses)


def stopped(number: int) -> StoppedRecord:
    """The run stopped early."""
    return StoppedRecord(sequence=1, time=_time(None), step=number, why="requested")


def failed(reason: FailureReason = FailureReason.DATASET_INVALID) -> FailedRecord:
    """The run failed, with a reason."""
    faults = [Fault(path="a.png", reason="corrupt")]
    return FailedRecord(sequence=1, time=_time(None), reason=reason, message="cannot train", faults=faults)


def _time(at: float | None) -> float:
    return time.time() if at is None else at
