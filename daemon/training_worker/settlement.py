"""The settlement: what is said and written when an attempt has ended, and how its job is given up."""

from typing import Any

import structlog

from training_schemas.events import JobCancelled, JobCompleted, JobEvent, JobFailed, JobReleased
from training_schemas.ledger import Cancelled, Completed, Failed, TerminalEntry
from training_worker.broker.link import Link
from training_worker.dead import bury
from training_worker.observations import AttemptOutcome
from training_worker.ownership import Ownership
from training_worker.queued_job import QueuedJob
from training_worker.reporter import Reporter
from training_worker.runner import Broken, Done, Outcome, Stopped
from training_worker.wishes import Wishes

log = structlog.get_logger()


class Settlement:
    """What is said and written once an attempt has ended, while the job is still ours."""

    def __init__(self, queued: QueuedJob, ownership: Ownership, wishes: Wishes, reporter: Reporter) -> None:
        self._queued = queued
        self._ownership = ownership
        self._wishes = wishes
        self._reporter = reporter

    async def settle(self, outcome: Outcome, link: Link) -> AttemptOutcome:
        """Say how the attempt ended, and give up the job: for good, or back to its queue."""
        match outcome:
            case Done():
                ours, end = await self._complete(outcome), AttemptOutcome.COMPLETED
            case Broken():
                ours, end = await self._fail(outcome, link), AttemptOutcome.FAILED
            case Stopped() if self._wishes.cancelled:
                ours, end = await self._cancel(outcome), AttemptOutcome.CANCELLED
            case Stopped():
                ours, end = await self._give_back(outcome), AttemptOutcome.RELEASED
        log.info("job_ended", outcome=end if ours else AttemptOutcome.SUPERSEDED)
        return end if ours else AttemptOutcome.SUPERSEDED

    async def _cancel(self, outcome: Stopped) -> bool:
        entry = self._ownership.entry(Cancelled)
        return await self._end(entry, JobCancelled, step=outcome.step, usage=outcome.usage)

    async def _complete(self, outcome: Done) -> bool:
        record = outcome.record
        return await self._end(
            self._ownership.entry(Completed),
            JobCompleted,
            output_path=self._queued.job.output_path,
            steps=record.steps,
            first_loss=record.first_loss,
            last_loss=record.last_loss,
            fixed_loss_before=record.fixed_loss_before,
            fixed_loss_after=record.fixed_loss_after,
            artifacts=record.artifacts,
            usage=outcome.usage,
        )

    async def _fail(self, outcome: Broken, link: Link) -> bool:
        # The letter goes first: a failure that nobody can look at afterwards would be a lost job.
        await bury(
            link,
            self._queued.message().body,
            job_id=self._queued.job_id,
            reason=outcome.reason,
            message=outcome.message,
        )
        return await self._end(
            self._ownership.entry(Failed, reason=outcome.reason),
            JobFailed,
            reason=outcome.reason,
            message=outcome.message,
            faults=outcome.faults,
            output_tail=outcome.output_tail,
            usage=outcome.usage,
        )

    async def _end(self, entry: TerminalEntry, event: type[JobEvent], **fields: Any) -> bool:
        if not await self._ownership.report(entry):
            return False
        self._reporter.emit(event, **fields)
        await self._reporter.flush()
        await self._ownership.leave()
        return True

    async def _give_back(self, outcome: Stopped) -> bool:
        self._reporter.emit(JobReleased, why=self._wishes.why, step=outcome.step, usage=outcome.usage)
        await self._reporter.flush()
        return await self._ownership.release()
