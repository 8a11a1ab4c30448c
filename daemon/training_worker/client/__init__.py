"""The client that a backend imports: it submits, follows and controls jobs."""

from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.fleet import WorkerCondition, WorkerState
from training_worker.client.job_builder import flux_lora_job, sdxl_lora_job
from training_worker.client.results import CancelAnswer, CancelState, Receipt
from training_worker.client.sync_client import TrainingWorkerAPI

__all__ = [
    "AsyncTrainingWorkerAPI",
    "CancelAnswer",
    "CancelState",
    "Receipt",
    "TrainingWorkerAPI",
    "WorkerCondition",
    "WorkerState",
    "flux_lora_job",
    "sdxl_lora_job",
]
