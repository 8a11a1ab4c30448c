"""A daemon that trains LoRAs on GPU hosts from a RabbitMQ queue, and the client that talks to it.

Importing this is cheap: neither AMQP, NVML nor torch is loaded before it is needed.
"""

from training_worker.answers import CancelAnswer, CancelState, Receipt
from training_worker.blocking import TrainingWorkerAPI
from training_worker.client import AsyncTrainingWorkerAPI
from training_worker.jobs import flux_lora_job, sdxl_lora_job
from training_worker.letters import DeadLetter
from training_worker.version import __version__
from training_worker.workers import WorkerCondition, WorkerState

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
