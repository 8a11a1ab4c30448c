"""The names of everything on the broker. Several fleets share one under different prefixes."""

import msgspec

from training_schemas.jobs import MemoryTier, ModelFamily

SUBMIT_KEY = "submit"

# The key of the ledger on the control exchange: clients need no right to write to queues by name, which would allow
# writing to all of them.
LEDGER_KEY = "ledger"

# Replaces a worker's id in a command's key.
ALL_WORKERS = "all"


class Names(msgspec.Struct, frozen=True):
    """All names, from one prefix."""

    prefix: str = "training"

    @property
    def jobs(self) -> str:
        """Topic exchange: jobs on their way to the intake and to the tier queues."""
        return f"{self.prefix}.jobs"

    @property
    def control(self) -> str:
        """Topic exchange: commands to jobs and workers."""
        return f"{self.prefix}.control"

    @property
    def retry(self) -> str:
        """Topic exchange: jobs that go back to their tier queue after a delay, as ``30.flux.24gb``."""
        return f"{self.prefix}.retry"

    @property
    def events(self) -> str:
        """Topic exchange: events about jobs and workers."""
        return f"{self.prefix}.events"

    @property
    def events_log(self) -> str:
        """Stream: all events of the last days."""
        return f"{self.prefix}.events.log"

    @property
    def ledger(self) -> str:
        """Stream: the milestones of all jobs."""
        return f"{self.prefix}.ledger"

    @property
    def intake(self) -> str:
        """Queue: where backends publish."""
        return f"{self.prefix}.intake"

    @property
    def dead(self) -> str:
        """Queue: dead letters."""
        return f"{self.prefix}.dead"

    def tier_queue(self, family: ModelFamily, tier: MemoryTier, gpu_count: int = 1) -> str:
        """Queue: jobs that wait for a GPU of this tier or higher, or for this many of them."""
        return f"{self.prefix}.tier.{tier_key(family, tier, gpu_count)}"

    def delay_queue(self, seconds: int) -> str:
        """Queue: jobs that wait this long before they return to their tier queues."""
        return f"{self.prefix}.retry.{seconds}"

    def owner(self, job_id: str) -> str:
        """Exclusive queue: the job's lock and its owner's inbox."""
        return f"{self.prefix}.owner.{job_id}"

    def lease(self, job_id: str) -> str:
        """Queue: the copies of the job that return if its owner is gone."""
        return f"{self.prefix}.lease.{job_id}"


def tier_key(family: ModelFamily, tier: MemoryTier, gpu_count: int = 1) -> str:
    """Return the routing key of a tier queue, as ``flux.24gb``, or ``flux.2x24gb`` for several GPUs."""
    several = "" if gpu_count == 1 else f"{gpu_count}x"
    return f"{family}.{several}{tier}"


def delayed_key(seconds: int, key: str) -> str:
    """Return the routing key of a job that goes to ``key`` after this delay, as ``30.flux.24gb``."""
    return f"{seconds}.{key}"


def job_key(job_id: str) -> str:
    """Return the routing key of commands to a job's owner."""
    return f"job.{job_id}"


def worker_key(worker_id: str) -> str:
    """Return the routing key of commands to one worker, or to ``all``."""
    return f"worker.{worker_id}"
