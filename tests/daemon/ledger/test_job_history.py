"""What the ledger's entries about a job add up to, in whatever order they come."""

from functools import reduce

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_schemas.ledger import (
    AnyEntry,
    AttemptFailed,
    Barrier,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Claimed,
    Completed,
    Failed,
    Released,
    Requeued,
    Submitted,
)
from training_schemas.usage import Usage
from training_worker.ledger.job_history import ClaimRecord, JobHistory

SUBMITTED = Submitted(job_id="a", time=1.0, digest="d1")
CLAIMED = Claimed(job_id="a", time=2.0, attempt=1, worker="w1")
SAVED = CheckpointSaved(job_id="a", time=3.0, attempt=1, worker="w1", step=5, path="/models/.a.a.1/checkpoint-5")
USED = Usage(gpu_seconds=60.0, cost_usd=0.5, wasted_gpu_seconds=10.0)
COMPLETED = Completed(job_id="a", time=4.0, attempt=1, worker="w1", usage=USED)
RELEASED = Released(job_id="a", time=4.0, attempt=1, worker="w1", usage=USED)
CRASHED = AttemptFailed(
    job_id="a", time=4.0, attempt=1, worker="w1", reason="trainerCrashed", message="oops", counted=True, usage=USED
)


def fold(*entries: AnyEntry) -> JobHistory:
    """The history that these entries add up to."""
    return reduce(JobHistory.after, entries, JobHistory())


def test_a_job_without_entries_has_an_empty_history() -> None:
    """Attempt 0 is before the first claim."""
    assert fold() == JobHistory()
    assert (fold().attempt, fold().lost, fold().cost_usd, fold().terminal) == (0, 0, 0.0, None)


def test_a_whole_life_adds_up() -> None:
    """Each turning point is kept where the next owner looks for it."""
    history = fold(SUBMITTED, CLAIMED, SAVED, COMPLETED)

    assert (history.digest, history.attempt, history.terminal) == ("d1", 1, COMPLETED)
    assert history.checkpoints == (SAVED,)
    assert [(one.worker, one.outcome, one.usage) for one in history.attempts] == [("w1", "completed", USED)]


def test_the_first_submission_is_the_job() -> None:
    """The same id with another digest is another job, and does not replace the first."""
    history = fold(SUBMITTED, Submitted(job_id="a", time=9.0, digest="d2"))

    assert (history.digest, history.submitted_at) == ("d1", 1.0)


def test_the_last_checkpoint_is_the_one_to_go_on_from() -> None:
    """The last few are kept, oldest first: the last one may lie on a disk that the next owner cannot read."""
    again = Claimed(job_id="a", time=5.0, attempt=2, worker="w2")
    later = [
        CheckpointSaved(job_id="a", time=8.0, attempt=2, worker="w2", step=step, path=f"/c{step}") for step in (9, 12)
    ]

    assert fold(SUBMITTED, CLAIMED, SAVED, again, *later).checkpoints == (SAVED, *later)


def test_a_checkpoint_that_is_written_again_later_is_still_one() -> None:
    """It does not crowd out the ones before it."""
    saved = [CheckpointSaved(job_id="a", time=3.0, attempt=1, worker="w1", step=n, path=f"/c{n}") for n in (1, 2, 3)]
    again = msgspec.structs.replace(saved[2], time=9.0, usage=USED)

    history = fold(SUBMITTED, CLAIMED, *saved, again, again)

    assert [one.path for one in history.checkpoints] == ["/c1", "/c2", "/c3"]


def test_what_a_superseded_owner_still_writes_is_passed_over() -> None:
    """Its checkpoint, release or failure, written after somebody else's claim, is not the job's any more."""
    again = Claimed(job_id="a", time=5.0, attempt=2, worker="w2")
    history = fold(SUBMITTED, CLAIMED, again)

    assert fold(SUBMITTED, CLAIMED, again, SAVED, RELEASED, CRASHED) == history


def test_every_attempt_is_accounted_for() -> None:
    """One without a later entry counts as lost, with what it had used at its last checkpoint."""
    saved = msgspec.structs.replace(SAVED, usage=Usage(gpu_seconds=30.0, cost_usd=0.25))
    second = Claimed(job_id="a", time=5.0, attempt=2, worker="w2")
    crashed = msgspec.structs.replace(CRASHED, attempt=2, worker="w2")
    history = fold(SUBMITTED, CLAIMED, saved, second, crashed)

    assert [(one.attempt, one.outcome, one.usage.gpu_seconds) for one in history.attempts] == [
        (1, "lost", 30.0),
        (2, "failed", 60.0),
    ]
    assert (history.lost, history.counted, history.cost_usd) == (1, 1, 0.75)


@pytest.mark.parametrize(("reason", "steps_down"), [("outOfMemory", 2), ("trainerCrashed", 0)])
def test_each_time_out_of_memory_is_a_step_down(reason: str, steps_down: int) -> None:
    """What does not count to the limit of attempts still is remembered."""
    history = fold(SUBMITTED)
    for attempt in (1, 2):
        history = history.after(Claimed(job_id="a", time=1.0, attempt=attempt, worker="w1"))
        failed = msgspec.structs.replace(CRASHED, attempt=attempt, reason=reason, counted=False)
        history = history.after(failed)

    assert (history.out_of_memory, history.counted) == (steps_down, 0)


def test_a_requeued_job_begins_again_and_keeps_its_past() -> None:
    """Its end, its failures and a cancellation are void; its attempts and checkpoints are not."""
    failed = Failed(job_id="a", time=4.0, attempt=1, worker="w1", reason="diskFull", message="full", usage=USED)
    history = fold(SUBMITTED, CLAIMED, SAVED, CancelRequested(job_id="a", time=3.0), failed)
    again = history.after(Requeued(job_id="a", time=9.0))

    assert (again.terminal, again.cancel_requested, again.counted) == (None, False, 0)
    assert (history.outcome, history.requeued, again.outcome, again.requeued) == ("failed", False, None, True)
    assert (again.attempt, again.checkpoints, again.attempts) == (1, (SAVED,), history.attempts)


def test_lost_attempts_are_forgiven_once_the_job_is_requeued() -> None:
    """Those before it count no more, those after it do; the attempts themselves stay in the account."""
    claims = [Claimed(job_id="a", time=float(number), attempt=number, worker="w1") for number in range(1, 7)]
    failed = Failed(job_id="a", time=4.0, attempt=3, worker="w1", reason="workerLost")
    history = fold(SUBMITTED, *claims[:3], failed, Requeued(job_id="a", time=9.0))
    assert (history.lost, history.forgiven) == (0, 3)

    assert history.after(claims[3]).lost == 1
    twice = fold(SUBMITTED, *claims[:3], failed, Requeued(job_id="a", time=9.0), *claims[3:])
    twice = twice.after(Requeued(job_id="a", time=99.0))
    assert (twice.lost, twice.forgiven, len(twice.attempts)) == (0, 6, 6)


def test_the_last_claim_is_known_by_its_name() -> None:
    """By it an owner whose confirm was lost recognises itself; one of an attempt that is over changes nothing."""
    first = Claimed(job_id="a", time=2.0, attempt=1, worker="w1", claim="c1")
    second = Claimed(job_id="a", time=3.0, attempt=2, worker="w1", claim="c2")
    late = Claimed(job_id="a", time=4.0, attempt=2, worker="w2", claim="c3")

    assert [fold(first).claim, fold(first, second).claim, fold(first, second, late).claim] == ["c1", "c2", "c2"]


def test_what_an_owner_builds_on_can_be_written_down() -> None:
    """The daemon that comes next stands on the same."""
    claim_record = ClaimRecord(claim="c1", before=fold(SUBMITTED, CLAIMED, SAVED, CRASHED))

    assert msgspec.json.decode(msgspec.json.encode(claim_record), type=ClaimRecord) == claim_record


def test_a_cancellation_is_remembered_through_release_and_claim() -> None:
    """Whoever consumes the job next has to honour it."""
    released = Released(job_id="a", time=4.0, attempt=1, worker="w1")
    again = Claimed(job_id="a", time=5.0, attempt=2, worker="w2")
    history = fold(SUBMITTED, CLAIMED, CancelRequested(job_id="a", time=3.0), released, again)

    assert (history.cancel_requested, history.attempt, history.terminal) == (True, 2, None)


def test_a_cancellation_before_anything_else_counts() -> None:
    """It may overtake the submission."""
    assert fold(CancelRequested(job_id="a", time=0.0), SUBMITTED).cancel_requested


def test_a_released_attempt_is_not_lost() -> None:
    """Its owner wrote that, and what it had used."""
    history = fold(SUBMITTED, CLAIMED, RELEASED)

    assert (history.lost, history.attempts[0].outcome, history.attempts[0].usage) == (0, "released", USED)


def test_markers_change_nothing() -> None:
    """They are for readers that wait for them."""
    history = fold(SUBMITTED, CLAIMED)

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
    st.builds(msgspec.structs.replace, st.just(CRASHED), attempt=attempts, counted=st.booleans()),
)


@given(st.lists(entries))
def test_an_attempt_never_decreases_and_the_first_end_stays(written: list[AnyEntry]) -> None:
    """An entry of somebody who was superseded, written late, changes nothing."""
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
    """An entry whose confirm was lost is written again; right after itself it adds nothing new."""
    assert fold(*written) == fold(*(entry for once in written for entry in (once, once)))
