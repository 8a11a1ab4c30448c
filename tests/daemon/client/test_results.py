"""What a cancellation is answered with."""

from functools import reduce

import pytest

from training_schemas.ledger import (
    AnyEntry,
    AttemptFailed,
    Cancelled,
    CancelRequested,
    Claimed,
    Completed,
    Failed,
    Released,
    Requeued,
    Submitted,
)
from training_schemas.usage import Usage
from training_worker.client.results import CancelAnswer, CancelState, cancel_answer
from training_worker.ledger.job_history import JobHistory

SUBMITTED = Submitted(job_id="a", time=1.0, digest="d1")
CLAIMED = Claimed(job_id="a", time=2.0, attempt=1, worker="w1")
RELEASED = Released(job_id="a", time=3.0, attempt=1, worker="w1")
CRASHED = AttemptFailed(
    job_id="a",
    time=3.0,
    attempt=1,
    worker="w1",
    reason="stalled",
    message="",
    counted=True,
    usage=Usage(gpu_seconds=1.0),
)
COMPLETED = Completed(job_id="a", time=4.0, attempt=1, worker="w1")
FAILED = Failed(job_id="a", time=4.0, attempt=1, worker="w1", reason="stalled")
CANCELLED = Cancelled(job_id="a", time=4.0, attempt=1, worker="w1")
REQUEUED = Requeued(job_id="a", time=5.0)
ASKED = CancelRequested(job_id="a", time=1.0)


@pytest.mark.parametrize(
    ("entries", "told", "state"),
    [
        ([], False, "unknown"),
        ([ASKED], False, "unknown"),
        ([SUBMITTED], False, "waiting"),
        ([SUBMITTED, CLAIMED], False, "waiting"),
        ([SUBMITTED, CLAIMED], True, "running"),
        ([SUBMITTED, CLAIMED, RELEASED], False, "waiting"),
        ([SUBMITTED, CLAIMED, CRASHED], True, "running"),
        ([], True, "running"),
        ([SUBMITTED, CLAIMED, COMPLETED], False, "completed"),
        ([SUBMITTED, CLAIMED, COMPLETED], True, "completed"),
        ([CLAIMED, FAILED], False, "failed"),
        ([CANCELLED], False, "cancelled"),
        ([CLAIMED, FAILED, REQUEUED], False, "waiting"),
    ],
)
def test_the_answer_follows_from_the_ledger_and_from_whether_an_owner_was_told(
    entries: list[AnyEntry], told: bool, state: str
) -> None:
    """An end counts before all; a claim whose owner cannot be reached is for whoever takes the job next."""
    history = reduce(JobHistory.after, entries, JobHistory())

    assert cancel_answer("a", history, delivered=told).state == state


def test_the_owner_is_named_where_it_is_known() -> None:
    """Worker and attempt."""
    history = JobHistory().after(SUBMITTED).after(CLAIMED)

    expected = CancelAnswer(job_id="a", state=CancelState.RUNNING, worker="w1", attempt=1)
    assert cancel_answer("a", history, delivered=True) == expected
