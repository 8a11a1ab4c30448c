"""What is decided once an attempt has ended: encoded as events, and written down before anything is done about it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import runs
from tests.support.owning import RecordingLink, a_queued_job, a_reporter, over_the_wire, own

from training_schemas.events import (
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobReleased,
    JobRetrying,
    JobWarning,
    decode_event,
)
from training_schemas.ledger import (
    AnyEntry,
    AttemptFailed,
    Cancelled,
    CheckpointSaved,
    Claimed,
    Completed,
    Failed,
    Released,
    decode_entry,
)
from training_schemas.progress import FailureReason
from training_schemas.usage import Usage
from training_worker.attempts.completion import Closing, Completion
from training_worker.attempts.control import ControlRequests
from training_worker.attempts.outcome import Broken, Done, Outcome, Stopped
from training_worker.ledger.job_history import JobHistory
from training_worker.observations import AttemptOutcome
from training_worker.runs.run import Run
from training_worker.runs.run_directory import CLOSING_FILE

USED = Usage(gpu_seconds=60.0, cost_usd=0.5, wasted_gpu_seconds=10.0)
DELAYS = [30, 120]


def history(*failures: str) -> JobHistory:
    """A job that failed before for these reasons; all but running out of memory count."""
    past = JobHistory()
    for attempt, reason in enumerate(failures, start=1):
        past = past.after(Claimed(job_id="portrait", time=1.0, attempt=attempt, worker="w0"))
        past = past.after(
            AttemptFailed(
                job_id="portrait",
                time=2.0,
                attempt=attempt,
                worker="w0",
                reason=reason,
                message="earlier",
                counted=reason != "outOfMemory",
                usage=USED,
            )
        )
    return past


class Desk:
    """Where an attempt is finalized; nobody holds the job."""

    def __init__(self, *failures: str, run: Run | None = None, **fields: Any) -> None:
        connection = RecordingLink()
        self.queued = a_queued_job(**fields)
        self.ownership = own(connection, self.queued, history(*failures))
        self.outbox = a_reporter(connection, None if run is None else run.folder, attempt=len(failures) + 1)
        self.control = ControlRequests()
        self.completion = Completion(self.queued, self.ownership, self.control, self.outbox, run)

    def decide(self, outcome: Outcome) -> Closing:
        """What the attempt comes to."""
        return self.completion.decide(outcome, DELAYS)


def event(closing: Closing) -> JobEvent:
    """The event that an attempt ends with."""
    published = decode_event(bytes(closing.last_event.event)).read()
    assert isinstance(published, JobEvent)
    return published


def broken(reason: FailureReason) -> Broken:
    """An attempt that failed."""
    return Broken(reason=reason, message="oops", output_tail=["last"], usage=USED)


def test_a_result_completes_the_job() -> None:
    """With what the trainer reports, the attempt in the account, and all of it in the ledger as well."""
    closing = Desk().decide(Done(record=runs.done(), usage=USED))

    published = event(closing)
    assert isinstance(closing.entry, Completed)
    assert isinstance(published, JobCompleted)
    assert (published.output_path, published.steps, published.usage, published.sequence) == (
        "/models/portrait",
        10,
        USED,
        1,
    )
    assert [(one.attempt, one.outcome, one.usage) for one in published.attempts] == [(1, "completed", USED)]
    assert (closing.outcome, closing.entry.usage) == (AttemptOutcome.COMPLETED, USED)
    assert bytes(closing.entry.event) == bytes(closing.last_event.event)


def test_a_result_counts_more_than_a_cancellation() -> None:
    """It came first."""
    desk = Desk()
    desk.control.cancel()

    assert isinstance(desk.decide(Done(record=runs.done())).entry, Completed)


@pytest.mark.parametrize("outcome", [Stopped(step=5, usage=USED), broken(FailureReason.TRAINER_CRASHED)])
def test_a_job_that_was_cancelled_is_cancelled_however_its_trainer_ended(outcome: Outcome) -> None:
    """A trainer that crashes on the way out is not tried again."""
    desk = Desk()
    desk.control.cancel()
    desk.ownership.note(desk.ownership.entry(CheckpointSaved, step=5, path="/c5"))

    closing = desk.decide(outcome)

    published = event(closing)
    assert isinstance(closing.entry, Cancelled)
    assert isinstance(published, JobCancelled)
    assert (published.step, published.usage, published.attempts[-1].outcome) == (5, USED, "cancelled")


def test_a_job_that_was_stopped_is_requeued_at_once() -> None:
    """To whoever consumes it; the reason is reported."""
    desk = Desk()
    desk.control.end("SIGTERM")

    closing = desk.decide(Stopped(step=5, usage=USED))

    published = event(closing)
    assert isinstance(closing.entry, Released)
    assert isinstance(published, JobReleased)
    assert (published.why, published.step, published.usage) == ("SIGTERM", 5, USED)
    assert (closing.delay, closing.avoid, closing.here) == (0, None, False)


def test_a_crash_goes_elsewhere_after_a_while() -> None:
    """This worker leaves the job to others; the failure counts."""
    closing = Desk().decide(broken(FailureReason.TRAINER_CRASHED))

    published = event(closing)
    assert isinstance(closing.entry, AttemptFailed)
    assert isinstance(published, JobRetrying)
    assert (closing.entry.counted, closing.entry.reason) == (True, "trainerCrashed")
    assert (closing.delay, closing.avoid, closing.here) == (30, "w1", False)
    assert (published.delay_seconds, published.here, published.counted, published.output_tail) == (
        30,
        False,
        True,
        ["last"],
    )


def test_the_second_failure_waits_longer() -> None:
    """As the operator has set it."""
    assert Desk("trainerCrashed").decide(broken(FailureReason.STALLED)).delay == 120


def test_out_of_memory_is_tried_again_here_and_at_once() -> None:
    """With less; it does not count."""
    closing = Desk(batch_size=4).decide(broken(FailureReason.OUT_OF_MEMORY))

    published = event(closing)
    assert isinstance(closing.entry, AttemptFailed)
    assert isinstance(published, JobRetrying)
    assert (closing.delay, closing.avoid, closing.here, closing.entry.counted) == (0, None, True, False)
    assert (published.here, published.counted) == (True, False)


def test_out_of_memory_with_nothing_left_to_give_up_fails_the_job() -> None:
    """No GPU of this tier can train it."""
    assert Desk(batch_size=2).decide(broken(FailureReason.OUT_OF_MEMORY)).here
    assert isinstance(Desk("outOfMemory", batch_size=2).decide(broken(FailureReason.OUT_OF_MEMORY)).entry, Failed)


def test_the_last_attempt_fails_the_job_with_all_attempts() -> None:
    """Whoever looks at the failure sees how it came to it."""
    closing = Desk("trainerCrashed", "outOfMemory", max_attempts=2).decide(broken(FailureReason.TRAINER_CRASHED))

    published = event(closing)
    assert isinstance(closing.entry, Failed)
    assert isinstance(published, JobFailed)
    assert (closing.entry.reason, closing.entry.message) == ("trainerCrashed", "oops")
    assert (published.reason, published.message, published.output_tail) == (
        FailureReason.TRAINER_CRASHED,
        "oops",
        ["last"],
    )
    assert [(one.attempt, one.worker, one.outcome, one.reason) for one in published.attempts] == [
        (1, "w0", "failed", "trainerCrashed"),
        (2, "w0", "failed", "outOfMemory"),
        (3, "w1", "failed", "trainerCrashed"),
    ]


def test_what_can_not_be_fixed_fails_the_job_at_once() -> None:
    """Another host has the same data set."""
    closing = Desk().decide(broken(FailureReason.DATASET_INVALID))

    assert isinstance(closing.entry, Failed)
    assert closing.outcome == AttemptOutcome.FAILED


OUTCOMES: list[Outcome] = [
    Done(record=runs.done(), usage=USED),
    Stopped(step=5, usage=USED),
    broken(FailureReason.TRAINER_CRASHED),
    broken(FailureReason.OUT_OF_MEMORY),
    broken(FailureReason.CONFIG_INVALID),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_what_was_decided_is_carried_out_by_the_next_daemon_as_it_was(tmp_path: Path, outcome: Outcome) -> None:
    """To the byte: the entry for the ledger and the event are the same, whoever writes them."""
    run = runs.make_run(tmp_path)
    closing = Desk(run=run, batch_size=4).decide(outcome)

    found = run.folder.read(CLOSING_FILE, Closing)

    assert found is not None
    assert msgspec.json.encode(found) == msgspec.json.encode(closing)
    assert type(found.entry) is type(closing.entry)
    assert bytes(found.last_event.event) == bytes(closing.last_event.event)
    assert msgspec.structs.replace(closing, entry=found.entry, last_event=found.last_event) == found
    entry: AnyEntry = decode_entry(msgspec.json.encode(found.entry))
    assert msgspec.json.encode(over_the_wire(entry)) == msgspec.json.encode(closing.entry)


def test_the_last_event_follows_what_was_published_before() -> None:
    """Their number is the next one, though nothing is confirmed yet."""
    desk = Desk()
    desk.outbox.emit(JobWarning, message="one")

    assert desk.decide(Stopped(step=0)).last_event.sequence == 2
