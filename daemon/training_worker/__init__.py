"""A daemon that trains LoRAs on GPU hosts from a RabbitMQ queue, and the client that talks to it.

Importing this is cheap: neither AMQP, NVML nor torch is loaded before it is needed.
"""

from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.fleet import WorkerCondition, WorkerState
from training_worker.client.job_builder import flux_lora_job, sdxl_lora_job
from training_worker.client.results import CancelAnswer, CancelState, Receipt
from training_worker.client.sync_client import TrainingWorkerAPI
from training_worker.queue.dead_letter import DeadLetter
from training_worker.version import __version__

__all__ = [
    "AsyncTrainingWorkerAPI",
    "CancelAnswer",
    "CancelState",
    "DeadLetter",
    "Receipt",
    "TrainingWorkerAPI",
    "WorkerCondition",
    "WorkerState",
    "__version__",
    "flux_lora_job",
    "sdxl_lora_job",
]
