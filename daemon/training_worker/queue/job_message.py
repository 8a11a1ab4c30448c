"""A job as a message in a queue: the job, when it was submitted, and the queue that it returns to."""

import msgspec
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from pamqp.common import FieldTable

from training_presets.planner import Plan, plan_job
from training_schemas.jobs import JOB_TYPE, TrainingJob, job_digest
from training_schemas.validation import decode_strictly
from training_worker.broker.names import tier_key
from training_worker.broker.session import persistent

SUBMITTED_HEADER = "x-training-submitted"
AVOID_HEADER = "x-training-avoid"
PASSED_HEADER = "x-training-passed"

# How often a worker that a job should avoid passes it on. It may be the only one that can train it.
MOST_PASSES = 3

# Unix seconds, in the year 2100.
LATEST_TIME = 4_102_444_800_000


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A valid job with its plan; ``submitted_at`` in unix seconds, by the clock of the worker that admitted it.

    ``avoid`` is the worker on which it failed last, and ``passed`` how often that one has passed it on since.
    """

    job: TrainingJob
    plan: Plan
    submitted_at: float
    avoid: str | None = None
    passed: int = 0

    @classmethod
    def submitted(cls, body: bytes, now: float) -> "QueuedJob":
        """Decode what a backend published. Raises `InvalidMessageError`."""
        job = decode_strictly(body, TrainingJob)
        return cls(job=job, plan=plan_job(job), submitted_at=now)

    @classmethod
    def waiting(cls, message: AbstractIncomingMessage) -> "QueuedJob":
        """Decode what an intake put into a tier queue. Raises `InvalidMessageError`."""
        value = message.headers.get(SUBMITTED_HEADER)
        # A job of unknown age may be as old as the ledger.
        submitted_at = value / 1000 if type(value) is int and 0 <= value < LATEST_TIME else 0.0
        avoid, passed = message.headers.get(AVOID_HEADER), message.headers.get(PASSED_HEADER)
        return msgspec.structs.replace(
            cls.submitted(message.body, submitted_at),
            avoid=avoid if isinstance(avoid, str) else None,
            passed=passed if type(passed) is int else 0,
        )

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def tier_key(self) -> str:
        """The routing key of the queue that the job waits in."""
        return tier_key(self.plan.family, self.plan.tier, self.plan.gpu_count)

    @property
    def digest(self) -> str:
        """SHA-256 of the job's canonical JSON: the same id with another digest is another job."""
        return job_digest(self.job)

    def should_avoid(self, worker: str) -> bool:
        """Return whether the worker should leave this job to another one."""
        return self.avoid == worker and self.passed < MOST_PASSES

    def elsewhere(self, worker: str) -> "QueuedJob":
        """Return the job after it failed on a worker."""
        return msgspec.structs.replace(self, avoid=worker, passed=0)

    def passed_on(self) -> "QueuedJob":
        """Return the job after a worker that it should avoid has passed it on."""
        return msgspec.structs.replace(self, passed=self.passed + 1)

    def message(self) -> Message:
        """Return a fresh copy for a tier, delay or lease queue."""
        avoid: FieldTable = {} if self.avoid is None else {AVOID_HEADER: self.avoid, PASSED_HEADER: self.passed}
        return persistent(
            msgspec.json.encode(self.job),
            message_id=self.job_id,
            type=JOB_TYPE,
            priority=self.job.priority,
            headers={SUBMITTED_HEADER: round(self.submitted_at * 1000)} | avoid,
        )
