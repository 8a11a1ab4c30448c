"""A job as it lies in a queue: the job, when it was submitted, and the queue that it goes back to."""

import hashlib

import msgspec
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

from training_presets.planner import Plan, plan_job
from training_schemas.jobs import JOB_TYPE, TrainingJob
from training_schemas.validation import decode_strictly
from training_worker.broker.names import tier_key
from training_worker.broker.session import persistent

SUBMITTED_HEADER = "x-training-submitted"

# Unix seconds, in the year 2100.
LATEST_TIME = 4_102_444_800_000


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A valid job with its plan; ``submitted_at`` in unix seconds, by the clock of the worker that let it in."""

    job: TrainingJob
    plan: Plan
    submitted_at: float

    @classmethod
    def submitted(cls, body: bytes, now: float) -> "QueuedJob":
        """Read what a backend published. Raises `InvalidMessageError`."""
        job = decode_strictly(body, TrainingJob)
        return cls(job=job, plan=plan_job(job), submitted_at=now)

    @classmethod
    def waiting(cls, message: AbstractIncomingMessage) -> "QueuedJob":
        """Read what an intake put into a tier queue. Raises `InvalidMessageError`."""
        value = message.headers.get(SUBMITTED_HEADER)
        # A job whose age nobody knows may be as old as the ledger.
        submitted_at = value / 1000 if type(value) is int and 0 <= value < LATEST_TIME else 0.0
        return cls.submitted(message.body, submitted_at)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def tier_key(self) -> str:
        """The routing key of the queue that the job waits in."""
        return tier_key(self.plan.family, self.plan.tier)

    @property
    def digest(self) -> str:
        """SHA-256 of the job's canonical JSON: the same id with another digest is another job."""
        return hashlib.sha256(msgspec.json.encode(self.job, order="deterministic")).hexdigest()

    def message(self) -> Message:
        """A fresh copy for a tier or lease queue."""
        return persistent(
            msgspec.json.encode(self.job),
            message_id=self.job_id,
            type=JOB_TYPE,
            priority=self.job.priority,
            headers={SUBMITTED_HEADER: round(self.submitted_at * 1000)},
        )
