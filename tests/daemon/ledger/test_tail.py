"""What a daemon keeps of the ledger that it reads."""

import msgspec
import pytest

from training_schemas.ledger import (
    AnyEntry,
    Barrier,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Claimed,
    Completed,
    Failed,
    Requeued,
    Submitted,
)
from training_worker.ledger import tail as tail_module
from training_worker.ledger.job_history import JobHistory
from training_worker.ledger.tail import JobTail, Tail

EVENT = msgspec.Raw(b'{"id":"a/1/9"}')
SUBMITTED = Submitted(job_id="a", time=1.0, digest="d1")
CLAIMED = Claimed(job_id="a", time=2.0, attempt=1, worker="w1")
SAVED = CheckpointSaved(job_id="a", time=3.0, attempt=1, worker="w1", step=5, path="/c5")
COMPLETED = Completed(job_id="a", time=4.0, attempt=1, worker="w1", event=EVENT)
FAILED = Failed(job_id="a", time=4.0, attempt=1, worker="w1", event=EVENT, reason="stalled")


def read(tail: Tail, *entries: AnyEntry) -> Tail:
    """The tail, once it has read these."""
    for offset, entry in enumerate(entries, start=(tail.offset or 0) + 1):
        tail.receive(msgspec.json.encode(entry), offset)
    return tail


def test_an_ends_event_is_not_kept_for_all_jobs() -> None:
    """It is long, and seldom needed."""
    terminal = read(Tail(since=0.0), SUBMITTED, CLAIMED, COMPLETED).history("a").terminal

    assert terminal == msgspec.structs.replace(COMPLETED, event=msgspec.Raw(b""))


def test_a_lookup_of_one_job_returns_the_event_of_its_end() -> None:
    """To publish it again."""
    terminal = read(JobTail(since=0.0, job_id="a"), SUBMITTED, CLAIMED, COMPLETED).history("a").terminal

    assert terminal is not None
    assert bytes(terminal.event) == bytes(EVENT)


def test_only_of_a_completed_job_checkpoints_are_forgotten() -> None:
    """A failed one may be requeued, and resumes from them."""
    completed = read(Tail(since=0.0), SUBMITTED, CLAIMED, SAVED, COMPLETED).history("a")
    failed = read(Tail(since=0.0), SUBMITTED, CLAIMED, SAVED, FAILED, Requeued(job_id="a", time=9.0)).history("a")

    assert (completed.checkpoints, failed.checkpoints) == ((), (SAVED,))


def test_a_job_of_which_only_later_entries_were_read_is_known_in_part() -> None:
    """Its submission came before all that was read."""
    tail = read(Tail(since=0.0), SAVED)

    assert tail.began_before("a")
    assert not tail.began_before("b")
    assert not read(Tail(since=0.0), SUBMITTED, SAVED).began_before("a")


def test_entries_after_the_one_that_was_looked_up_do_not_count() -> None:
    """What followed from a cancellation is no reason against it."""
    request = CancelRequested(job_id="a", time=5.0)
    cancelled = Cancelled(job_id="a", time=6.0, attempt=1, worker="w1")
    other = Submitted(job_id="b", time=1.0, digest="d2")
    tail = read(JobTail(since=0.0, job_id="a", until=request), SUBMITTED, other, CLAIMED, request, cancelled)

    assert tail.history("a") == JobHistory().after(SUBMITTED).after(CLAIMED)
    assert tail.history("b") == JobHistory()


def test_an_entry_that_comes_again_after_a_reconnection_is_passed_over() -> None:
    """By its offset; reading continues after the last one."""
    tail = read(Tail(since=0.0), SUBMITTED)
    tail.receive(msgspec.json.encode(CLAIMED), 1)

    assert tail.history("a").attempt == 0
    assert tail.start == {"x-stream-offset": 2}


def test_the_oldest_jobs_are_forgotten_and_looked_up_by_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on the tail begins after them."""
    monkeypatch.setattr(tail_module, "MOST_JOBS", 2)
    tail = read(Tail(since=0.0), *(Submitted(job_id=job, time=100.0, digest="d") for job in "abc"))

    assert [tail.history(job).digest for job in "abc"] == [None, "d", "d"]
    assert tail.since == 160.0


async def test_a_marker_that_comes_back_is_reported_to_who_waits_for_it() -> None:
    """And to nobody else; what cannot be read is passed over."""
    tail = Tail(since=0.0)
    mine, others = tail.expect("mine"), tail.expect("others")

    tail.receive(b"{}", 1)
    tail.receive(msgspec.json.encode(Barrier(time=1.0, nonce="mine")), 2)

    assert (mine.done(), others.done()) == (True, False)
