"""A job's way through its states, reported by its events."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_schemas.events import (
    EVENTS,
    TERMINAL_EVENTS,
    Event,
    JobCancelled,
    JobCheckpoint,
    JobClaimed,
    JobCompleted,
    JobDuplicate,
    JobEvent,
    JobFailed,
    JobPhase,
    JobProgress,
    JobQueued,
    JobRefused,
    JobRejected,
    JobReleased,
    JobRetrying,
    JobSample,
    JobWarning,
    decode_event,
)
from training_schemas.progress import Phase
from training_schemas.states import (
    NEXT_STATES,
    TERMINAL_STATES,
    IllegalTransitionError,
    JobState,
    next_state,
    reported_state,
    state_after,
)

GOLDEN = Path(__file__).parent / "golden" / "events"
WAITING = [JobState.QUEUED, JobState.RETRYING, JobState.RELEASED]
RUNNING = [
    JobState.CLAIMED,
    JobState.PREPARING,
    JobState.TRAINING,
    JobState.CHECKPOINTING,
    JobState.SAMPLING,
    JobState.EXPORTING,
]


def golden(kind: type[Event]) -> Event:
    """The golden event of a kind."""
    return decode_event((GOLDEN / f"{kind.TYPE}.json").read_bytes()).read()


def event_of(kind: type[JobEvent], attempt: int = 1, **changes: Any) -> JobEvent:
    """An event of a kind, in an attempt."""
    event = golden(kind)
    assert isinstance(event, kind)
    return msgspec.structs.replace(event, attempt=attempt, **changes)


def submitted(kind: type[JobEvent] = JobQueued, **changes: Any) -> JobEvent:
    """What is published of a submission, in attempt 0."""
    return event_of(kind, 0, **changes)


def phase(phase: Phase, attempt: int = 1) -> JobEvent:
    """A phase begins."""
    return event_of(JobPhase, attempt, phase=phase)


JOB_EVENTS = [event_of(kind) for kind in EVENTS.values() if issubclass(kind, JobEvent)]


def test_a_job_goes_from_its_submission_to_its_completion() -> None:
    """Each event reports where the job is."""
    events = [
        submitted(),
        event_of(JobClaimed),
        phase(Phase.LOADING_MODEL),
        phase(Phase.SAMPLING),
        event_of(JobSample),
        phase(Phase.TRAINING),
        event_of(JobProgress),
        phase(Phase.CHECKPOINTING),
        event_of(JobCheckpoint),
        event_of(JobProgress),
        phase(Phase.EXPORTING),
        event_of(JobCompleted),
    ]

    assert [state_after(events[:count]) for count in range(len(events) + 1)] == [
        JobState.SUBMITTED,
        JobState.QUEUED,
        JobState.CLAIMED,
        JobState.PREPARING,
        JobState.SAMPLING,
        JobState.SAMPLING,
        JobState.TRAINING,
        JobState.TRAINING,
        JobState.CHECKPOINTING,
        JobState.CHECKPOINTING,
        JobState.TRAINING,
        JobState.EXPORTING,
        JobState.COMPLETED,
    ]


@pytest.mark.parametrize("number", range(5))
def test_the_first_five_phases_are_preparation(number: int) -> None:
    """Whatever a trainer does until it can train."""
    assert next_state(JobState.CLAIMED, phase(list(Phase)[number])) == JobState.PREPARING


@pytest.mark.parametrize("number", range(5, len(Phase)))
def test_each_later_phase_is_a_state_of_the_same_name(number: int) -> None:
    """Nothing that a trainer reports is passed over."""
    begun = list(Phase)[number]

    assert next_state(JobState.TRAINING, phase(begun)) == begun.value


def test_a_step_is_training_whatever_phase_was_announced() -> None:
    """A trainer need not report that it continues after a checkpoint."""
    assert reported_state(event_of(JobProgress, phase=Phase.STARTING)) == JobState.TRAINING


@pytest.mark.parametrize("event", [submitted(JobWarning), submitted(JobRefused), event_of(JobWarning)], ids=repr)
@pytest.mark.parametrize("state", JobState)
def test_a_warning_or_a_refusal_changes_no_state(state: JobState, event: JobEvent) -> None:
    """They are about something else."""
    assert next_state(state, event) == state


@pytest.mark.parametrize("kind", [JobQueued, JobRejected, JobDuplicate])
@pytest.mark.parametrize(
    "state", [*RUNNING, JobState.RETRYING, JobState.RELEASED, JobState.COMPLETED, JobState.CANCELLED]
)
def test_a_second_submission_leaves_a_job_that_is_further_where_it_is(state: JobState, kind: type[JobEvent]) -> None:
    """It may be let in, rejected or answered from the ledger; the first one goes its way."""
    assert next_state(state, submitted(kind)) == state


def test_a_second_submission_of_a_job_that_waits_leaves_it_waiting() -> None:
    """It is let in twice, and trained once."""
    assert next_state(JobState.QUEUED, submitted()) == JobState.QUEUED


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.QUEUED, JobState.REJECTED])
def test_a_reader_who_comes_late_learns_the_end_from_the_answer_to_a_duplicate(state: JobState, outcome: str) -> None:
    """The first life of the job may be out of the log."""
    assert next_state(state, submitted(JobDuplicate, outcome=outcome)) == outcome


def test_a_failed_job_is_queued_again_and_resumes_in_a_later_attempt() -> None:
    """An operator put it back; its attempts are counted on."""
    events = [submitted(), event_of(JobClaimed), event_of(JobFailed), submitted(), event_of(JobClaimed, 2)]

    assert [state_after(events[:count]) for count in (3, 4, 5)] == [JobState.FAILED, JobState.QUEUED, JobState.CLAIMED]


@pytest.mark.parametrize("kind", [JobRejected, JobDuplicate])
def test_a_failed_job_stays_failed_whatever_else_is_published_about_a_submission(kind: type[JobEvent]) -> None:
    """Only queueing puts it back."""
    assert next_state(JobState.FAILED, submitted(kind)) == JobState.FAILED


def test_a_rejected_message_is_corrected_and_submitted_again() -> None:
    """The id is that of the job in the end."""
    assert state_after([submitted(JobRejected), submitted()]) == JobState.QUEUED


def test_a_job_continues_although_a_later_message_with_its_id_was_rejected() -> None:
    """What was rejected is a message; the job of the first one still waits for a GPU."""
    assert state_after([submitted(), submitted(JobRejected)]) == JobState.REJECTED
    assert state_after([submitted(), submitted(JobRejected), event_of(JobClaimed)]) == JobState.CLAIMED


@pytest.mark.parametrize("state", [*WAITING, *RUNNING])
def test_a_job_can_be_claimed_while_it_waits_and_after_its_owner_was_lost(state: JobState) -> None:
    """Whoever was lost published nothing more."""
    assert next_state(state, event_of(JobClaimed)) == JobState.CLAIMED


@pytest.mark.parametrize("kind", [JobRetrying, JobReleased, JobCompleted, JobFailed, JobCancelled])
@pytest.mark.parametrize("state", [*WAITING, *RUNNING])
def test_a_worker_may_part_with_a_job_before_and_while_it_trains(state: JobState, kind: type[JobEvent]) -> None:
    """It was cancelled, released, failed, or found finished."""
    assert next_state(state, event_of(kind)) == reported_state(event_of(kind))


@pytest.mark.parametrize("state", [JobState.SUBMITTED, *WAITING, *sorted(TERMINAL_STATES)])
@pytest.mark.parametrize("kind", [JobPhase, JobProgress, JobCheckpoint, JobSample])
def test_nothing_is_trained_without_a_claim(state: JobState, kind: type[JobEvent]) -> None:
    """A phase, a step, a checkpoint or a sample follows on a claim."""
    with pytest.raises(IllegalTransitionError):
        next_state(state, event_of(kind))


@pytest.mark.parametrize("state", [JobState.TRAINING, JobState.CHECKPOINTING, JobState.SAMPLING, JobState.EXPORTING])
def test_preparation_does_not_follow_on_training(state: JobState) -> None:
    """A new attempt begins with its claim."""
    with pytest.raises(IllegalTransitionError):
        next_state(state, phase(Phase.CACHING_TEXT))


@pytest.mark.parametrize("begun", [Phase.TRAINING, Phase.CHECKPOINTING, Phase.SAMPLING])
def test_exporting_is_the_last_of_the_training(begun: Phase) -> None:
    """What is exported is the end result."""
    with pytest.raises(IllegalTransitionError):
        next_state(JobState.EXPORTING, phase(begun))


@pytest.mark.parametrize("event", [event_of(kind) for kind in TERMINAL_EVENTS if kind is not JobRejected], ids=repr)
@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.CANCELLED, JobState.FAILED])
def test_a_job_ends_once(state: JobState, event: JobEvent) -> None:
    """The same event read twice is for the reader to recognize, by its id."""
    with pytest.raises(IllegalTransitionError):
        next_state(state, event)


def test_an_illegal_event_is_named_with_the_state() -> None:
    """Who reads the message knows where to look."""
    with pytest.raises(ValueError, match=r"^cannot follow job user_portrait: JobProgress in state queued$"):
        next_state(JobState.QUEUED, event_of(JobProgress))


@pytest.mark.parametrize(
    "late", [phase(Phase.CACHING_TEXT), event_of(JobReleased), event_of(JobFailed), event_of(JobClaimed)], ids=repr
)
def test_late_events_of_a_superseded_owner_are_passed_over(late: JobEvent) -> None:
    """Whatever it publishes of its own attempt, the job is with somebody else."""
    events = [submitted(), event_of(JobClaimed), event_of(JobClaimed, 2), phase(Phase.TRAINING, 2)]

    assert state_after([*events, late]) == JobState.TRAINING


def test_a_submission_between_two_attempts_hides_none_of_them() -> None:
    """Attempt 0 changes nothing: the superseded owner stays superseded."""
    events = [submitted(), event_of(JobClaimed, 2), submitted(), event_of(JobFailed, 1)]

    assert state_after(events) == JobState.CLAIMED


def test_a_job_may_be_cancelled_in_any_state_but_an_end() -> None:
    """Claimed or not."""
    refused = {state for state, following in NEXT_STATES.items() if JobState.CANCELLED not in following}

    assert refused == {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}


@pytest.mark.parametrize("state", sorted(set(JobState) - TERMINAL_STATES))
def test_an_end_can_be_reached_from_every_state(state: JobState) -> None:
    """No job is stuck."""
    assert NEXT_STATES[state] & TERMINAL_STATES


def test_every_state_has_its_row_and_can_be_reached() -> None:
    """The table is whole."""
    assert set(NEXT_STATES) == set(JobState)
    assert set().union(*NEXT_STATES.values()) == set(JobState) - {JobState.SUBMITTED}


@given(st.sampled_from(JobState), st.sampled_from(JOB_EVENTS))
def test_a_state_changes_only_as_in_the_table(state: JobState, event: JobEvent) -> None:
    """Every event in every state: a state that may follow, the same state, or an error."""
    try:
        after = next_state(state, event)
    except IllegalTransitionError:
        assert reported_state(event) not in NEXT_STATES[state]
    else:
        assert after == state or (after in NEXT_STATES[state] and after == reported_state(event))
