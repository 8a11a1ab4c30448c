"""The completion of an attempt: what follows from its end is decided, recorded, and then carried out.

The decision is recorded in the run folder first. If the daemon dies in between, the next one carries out the same
decision, and publishes the same event.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from training_schemas.base import Wire
from training_schemas.events import (
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobReleased,
    JobRetrying,
    decode_event,
)
from training_schemas.ledger import AttemptFailed, Cancelled, Completed, EndEntry, Failed, Released, TerminalEntry
from training_schemas.usage import Usage
from training_worker.attempts.control import ControlRequests
from training_worker.attempts.event_outbox import EventOutbox, NumberedEvent
from training_worker.attempts.outcome import NOTHING_USED, Broken, Done, Outcome, Stopped
from training_worker.attempts.prediction import measure
from training_worker.attempts.retry_policy import Action, Decision, decide
from training_worker.observations import AttemptOutcome
from training_worker.ownership.ownership import Ownership
from training_worker.queue.dead_letter_queue import dead_letter_job
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.run import Run
from training_worker.runs.run_directory import CLOSING_FILE

log = structlog.get_logger()


class Closing(Wire, frozen=True, kw_only=True):
    """The completion of an attempt: an entry for the ledger, the last event, and what happens to the job.

    ``delay`` is how long the job waits before it is back in its queue (seconds), and ``avoid`` the worker that should
    leave it to others. ``here`` is set if the job is retried at once, on the same GPU.
    """

    entry: Completed | Failed | Cancelled | Released | AttemptFailed
    last_event: NumberedEvent = msgspec.field(name="words")
    outcome: AttemptOutcome
    delay: int = 0
    avoid: str | None = None
    here: bool = False


class FinalizedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an attempt for this worker, what it used, and whether another one follows here.

    ``final`` is set if the job ended without a result, by this worker's decision.
    """

    outcome: AttemptOutcome
    usage: Usage
    again: bool
    final: bool = False


class Completion:
    """The end of one attempt, while the job is still ours."""

    def __init__(
        self,
        queued: QueuedJob,
        ownership: Ownership,
        control: ControlRequests,
        outbox: EventOutbox,
        run: Run | None,
    ) -> None:
        self._queued = queued
        self._ownership = ownership
        self._control = control
        self._outbox = outbox
        self._run = run

    def decide(self, outcome: Outcome, delays: Sequence[int]) -> Closing:
        """Decide how the attempt ended and what follows, and record it.

        ``delays`` are how long a job waits before it is retried elsewhere (seconds).
        """
        closing = self._closing(outcome, delays)
        if self._run is not None:
            self._run.folder.write(CLOSING_FILE, closing)
        return closing

    def _closing(self, outcome: Outcome, delays: Sequence[int]) -> Closing:
        match outcome:
            case Done():
                return self._completed(outcome)
            case _ if self._control.cancelled:
                return self._cancelled(outcome)
            case Stopped():
                return self._released(outcome)
            case Broken():
                return self._broken(outcome, delays)

    def _completed(self, outcome: Done) -> Closing:
        record = outcome.record
        entry = self._ownership.entry(Completed, usage=outcome.usage)
        return self._end(
            entry,
            AttemptOutcome.COMPLETED,
            JobCompleted,
            output_path=self._queued.job.output_path,
            steps=record.steps,
            first_loss=record.first_loss,
            last_loss=record.last_loss,
            fixed_loss_before=record.fixed_loss_before,
            fixed_loss_after=record.fixed_loss_after,
            artifacts=record.artifacts,
            predicted=None if self._run is None else self._run.record.predicted,
            measured=measure(outcome, list(self._ownership.history.after(entry).attempts)),
        )

    def _cancelled(self, outcome: Stopped | Broken) -> Closing:
        entry = self._ownership.entry(Cancelled, usage=outcome.usage)
        return self._end(entry, AttemptOutcome.CANCELLED, JobCancelled, step=self._ownership.history.saved_step)

    def _released(self, outcome: Stopped) -> Closing:
        event = self._outbox.encode(JobReleased, why=self._control.why, step=outcome.step, usage=outcome.usage)
        return Closing(
            entry=self._ownership.entry(Released, usage=outcome.usage),
            last_event=event,
            outcome=AttemptOutcome.RELEASED,
        )

    def _broken(self, outcome: Broken, delays: Sequence[int]) -> Closing:
        before = self._ownership.before
        decision = decide(
            outcome.reason,
            before=before,
            max_attempts=self._queued.job.max_attempts,
            steps_down_left=before.out_of_memory < len(self._queued.plan.ladder),
            delays=delays,
        )
        if decision.action is Action.GIVE_UP:
            return self._failed(outcome)
        return self._retried(outcome, decision)

    def _failed(self, outcome: Broken) -> Closing:
        return self._end(
            self._ownership.entry(Failed, reason=outcome.reason, message=outcome.message, usage=outcome.usage),
            AttemptOutcome.FAILED,
            JobFailed,
            reason=outcome.reason,
            message=outcome.message,
            faults=outcome.faults,
            output_tail=outcome.output_tail,
        )

    def _retried(self, outcome: Broken, decision: Decision) -> Closing:
        here = decision.action is Action.RETRY_HERE
        entry = self._ownership.entry(
            AttemptFailed,
            reason=outcome.reason,
            message=outcome.message,
            counted=decision.counted,
            usage=outcome.usage,
        )
        event = self._outbox.encode(
            JobRetrying,
            reason=outcome.reason,
            message=outcome.message,
            here=here,
            counted=decision.counted,
            delay_seconds=decision.delay,
            output_tail=outcome.output_tail,
            usage=outcome.usage,
        )
        avoid = None if here else entry.worker
        return Closing(
            entry=entry, last_event=event, outcome=AttemptOutcome.RETRIED, delay=decision.delay, avoid=avoid, here=here
        )

    def _end(self, entry: TerminalEntry, outcome: AttemptOutcome, kind: type[JobEvent], **fields: Any) -> Closing:
        attempts = list(self._ownership.history.after(entry).attempts)
        event = self._outbox.encode(kind, **fields, usage=entry.usage, attempts=attempts)
        # The ledger keeps the event too: if this daemon dies before it is published, whoever finds the entry publishes
        # it.
        return Closing(entry=msgspec.structs.replace(entry, event=event.event), last_event=event, outcome=outcome)

    async def carry_out(self, closing: Closing) -> FinalizedAttempt:
        """Publish and record how the attempt ended, and give up the job: for good, for now, or not at all."""
        if isinstance(closing.entry, EndEntry):
            ours = await self._finish(closing, closing.entry)
        else:
            self._outbox.publish(closing.last_event)
            await self._outbox.flush()
            ours = await self._pass_on(closing, closing.entry)
        outcome = closing.outcome if ours else AttemptOutcome.SUPERSEDED
        log.info("job_ended", outcome=outcome)
        final = ours and isinstance(closing.entry, Failed | Cancelled)
        return FinalizedAttempt(
            outcome=outcome, usage=closing.entry.usage or NOTHING_USED, again=ours and closing.here, final=final
        )

    async def _finish(self, closing: Closing, entry: TerminalEntry) -> bool:
        await self._outbox.flush()
        if isinstance(entry, Failed):
            # The dead letter goes first: a failure that nobody can look at afterwards would be a lost job.
            await self._dead_letter(closing, entry)
        if not await self._ownership.report(entry):
            return False
        if self._ownership.found_reported:
            await self._ownership.publish_end()
        else:
            self._outbox.publish(closing.last_event)
            await self._outbox.flush()
        await self._ownership.leave()
        return True

    async def _dead_letter(self, closing: Closing, entry: Failed) -> None:
        event = decode_event(bytes(closing.last_event.event)).read()
        assert isinstance(event, JobFailed)  # noqa: S101 - the event of every failure
        await dead_letter_job(
            self._ownership.connection,
            self._queued.message().body,
            job_id=self._queued.job_id,
            reason=entry.reason,
            message=entry.message,
            faults=event.faults,
            history=event.attempts,
            output_tail=event.output_tail,
        )

    async def _pass_on(self, closing: Closing, entry: Released | AttemptFailed) -> bool:
        if closing.here:
            assert isinstance(entry, AttemptFailed)  # noqa: S101 - only a failure is retried
            return await self._ownership.try_again(entry)
        job = self._queued if closing.avoid is None else self._queued.elsewhere(closing.avoid)
        return await self._ownership.give_back(entry, job, closing.delay)
