"""What the ledger's entries about a job add up to, in whatever order they come."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from training_schemas.ledger import (
    AnyEntry,
    Barrier,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Claimed,
    Completed,
    Failed,
    Released,
    Submitted,
)
from training_worker.history import JobHistory

SUBMITTED = Submitted(job_id="a", time=1.0, digest="d1")
CLAIMED = Claimed(job_id="a", time=2.0, attempt=1, worker="w1")
SAVED = CheckpointSaved(job_id="a", time=3.0, attempt=1, worker="w1", step=5, path="/models/.a.a.1/checkpoint-5")
COMPLETED = Completed(job_id="a", time=4.0, attempt=1, worker="w1")


def fold(*entries: AnyEntry) -> JobHistory:
    """The history that these entries add up to."""
    return reduce(JobHistory.after, entries, JobHistory())


def test_a_job_that_nobody_spoke_of_has_an_empty_history() -> None:
    """Attempt 0 is before the first claim."""
    assert fold() == JobHistory(digest=None, attempt=0, checkpoint=None, cancel_requested=False, terminal=None)


def test_a_whole_life_adds_up() -> None:
    """Each turning point is kept where the next owner looks for it."""
    assert fold(SUBMITTED, CLAIMED, SAVED, COMPLETED) == JobHistory(
        digest="d1", attempt=1, checkpoint=SAVED, terminal=COMPLETED
    )


def test_the_first_submission_is_the_job() -> None:
    """The same id with another digest is another job, and does not replace the first."""
    assert fold(SUBMITTED, Submitted(job_id="a", time=9.0, digest="d2")).digest == "d1"


def test_the_last_checkpoint_is_the_one_to_go_on_from() -> None:
    """Also one of a later attempt."""
    later = CheckpointSaved(job_id="a", time=8.0, attempt=2, worker="w2", step=9, path="/c")

    assert fold(SUBMITTED, CLAIMED, SAVED, later).checkpoint == later


def test_a_cancellation_is_remembered_through_release_and_claim() -> None:
    """Whoever takes the job next has to honour it."""
    released = Released(job_id="a", time=4.0, attempt=1, worker="w1")
    again = Claimed(job_id="a", time=5.0, attempt=2, worker="w2")
    history = fold(SUBMITTED, CLAIMED, CancelRequested(job_id="a", time=3.0), released, again)

    assert (history.cancel_requested, history.attempt, history.terminal) == (True, 2, None)


def test_a_cancellation_before_anything_else_counts() -> None:
    """It may overtake the submission."""
    assert fold(CancelRequested(job_id="a", time=0.0), SUBMITTED).cancel_requested


def test_releases_and_markers_change_nothing() -> None:
    """They are for readers that look at the order, not at the sum."""
    history = fold(SUBMITTED, CLAIMED)

    assert history.after(Released(job_id="a", time=4.0, attempt=1, worker="w1")) == history
    assert history.after(Barrier(time=4.0, nonce="n")) == history


attempts = st.integers(0, 9)
workers = st.sampled_from(["w1", "w2"])
claims = st.builds(Claimed, job_id=st.just("a"), time=st.floats(0, 9), attempt=attempts, worker=workers)
ends = st.builds(Completed, job_id=st.just("a"), time=st.floats(0, 9), attempt=attempts, worker=workers) | st.builds(
    Cancelled, job_id=st.just("a"), time=st.floats(0, 9), attempt=attempts, worker=workers
)
failures = st.builds(
    Failed, job_id=st.just("a"), time=st.floats(0, 9), attempt=attempts, worker=workers, reason=st.just("outOfMemory")
)
entries = st.one_of(
    claims,
    ends,
    failures,
    st.just(SUBMITTED),
    st.just(SAVED),
    st.just(CancelRequested(job_id="a", time=1.0)),
    st.just(Barrier(time=1.0, nonce="n")),
    st.builds(Released, job_id=st.just("a"), time=st.floats(0, 9), attempt=attempts, worker=workers),
)


@given(st.lists(entries))
def test_an_attempt_never_decreases_and_the_first_end_stays(written: list[AnyEntry]) -> None:
    """An entry of somebody who was superseded, written late, takes nothing back."""
    history = JobHistory()
    for entry in written:
        after = history.after(entry)
        assert after.attempt >= history.attempt
        assert after.cancel_requested >= history.cancel_requested
        assert history.terminal in (None, after.terminal)
        assert history.digest in (None, after.digest)
        history = after

    assert history.attempt == max([entry.attempt for entry in written if isinstance(entry, Claimed)], default=0)
    first_end = next((entry for entry in written if isinstance(entry, Completed | Failed | Cancelled)), None)
    assert history.terminal == first_end


@given(st.lists(entries))
def test_reading_an_entry_twice_changes_nothing(written: list[AnyEntry]) -> None:
    """An entry whose confirm was lost is written again; right after itself it says nothing new."""
    assert fold(*written) == fold(*(entry for once in written for entry in (once, once)))
