"""What is done about a failure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_schemas.progress import FailureReason
from training_schemas.usage import AttemptSummary, Usage
from training_worker.attempts.retry_policy import (
    MOST_LOST,
    MOST_UNHEALTHY,
    POLICY,
    Action,
    Decision,
    decide,
    too_often_lost,
)
from training_worker.ledger.job_history import LOST, JobHistory

DELAYS = [30, 120, 600]
RETRIED_ELSEWHERE = ["modelMissing", "modelInvalid", "diskFull", "trainerCrashed", "stalled"]
HOPELESS = [
    "datasetMissing",
    "datasetInvalid",
    "configInvalid",
    "outputInvalid",
    "lossNotFinite",
    "budgetExhausted",
]

reasons = st.sampled_from(FailureReason)


def decision(
    reason: str, before: JobHistory | None = None, *, max_attempts: int = 3, steps_down_left: bool = True
) -> Decision:
    """What is done about a failure in a job with this history."""
    return decide(
        FailureReason(reason),
        before=before or JobHistory(),
        max_attempts=max_attempts,
        steps_down_left=steps_down_left,
        delays=DELAYS,
    )


def ended(*outcomes: str) -> JobHistory:
    """A job whose attempts ended so."""
    usage = Usage(gpu_seconds=1.0)
    attempts = (
        AttemptSummary(attempt=number, worker="w1", outcome=outcome, usage=usage)
        for number, outcome in enumerate(outcomes, 1)
    )
    return JobHistory(attempts=tuple(attempts))


def test_every_reason_has_a_rule() -> None:
    """The list is closed, and the table total."""
    assert set(POLICY) == set(FailureReason)


@pytest.mark.parametrize("reason", HOPELESS)
def test_what_no_other_attempt_can_fix_is_given_up_at_once(reason: str) -> None:
    """However many attempts are left."""
    assert decision(reason, max_attempts=20) == Decision(action=Action.GIVE_UP, counted=True, delay=0)


@pytest.mark.parametrize("reason", RETRIED_ELSEWHERE)
def test_what_may_be_the_hosts_fault_is_tried_elsewhere_after_a_delay(reason: str) -> None:
    """And counts, since it may be the job's."""
    assert decision(reason) == Decision(action=Action.RETRY_ELSEWHERE, counted=True, delay=30)


@pytest.mark.parametrize(("counted", "delay"), [(0, 30), (1, 120), (2, 600), (3, 600), (9, 600)])
def test_the_delay_grows_with_each_counted_failure_up_to_the_last_rung(counted: int, delay: int) -> None:
    """What does not fix itself soon may do so later."""
    assert decision("diskFull", JobHistory(counted=counted), max_attempts=20).delay == delay


@pytest.mark.parametrize("reason", RETRIED_ELSEWHERE)
@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_the_failure_that_reaches_the_limit_is_the_last(reason: str, max_attempts: int) -> None:
    """With three attempts, the third counted failure ends the job; with one, the first."""
    last, before_it = JobHistory(counted=max_attempts - 1), JobHistory(counted=max_attempts - 2)

    assert decision(reason, last, max_attempts=max_attempts) == Decision(action=Action.GIVE_UP, counted=True, delay=0)
    assert decision(reason, before_it, max_attempts=max_attempts).action == Action.RETRY_ELSEWHERE


@pytest.mark.parametrize("counted", [0, 2, 9])
def test_out_of_memory_is_tried_again_here_as_long_as_settings_are_left(counted: int) -> None:
    """It costs none of the job's attempts, even where none is left."""
    before = JobHistory(counted=counted, out_of_memory=7)

    assert decision("outOfMemory", before) == Decision(action=Action.RETRY_HERE, counted=False, delay=0)
    assert decision("outOfMemory", before, steps_down_left=False).action == Action.GIVE_UP


@pytest.mark.parametrize("reason", RETRIED_ELSEWHERE)
def test_only_out_of_memory_requires_smaller_settings(reason: str) -> None:
    """A job with nothing left to make smaller is tried elsewhere all the same."""
    assert decision(reason, steps_down_left=False) == decision(reason, steps_down_left=True)


def test_a_lost_worker_costs_the_job_nothing() -> None:
    """Even where no attempt is left."""
    expected = Decision(action=Action.RETRY_ELSEWHERE, counted=False, delay=600)

    assert decision("workerLost", JobHistory(counted=2)) == expected


def test_a_job_that_lost_too_many_workers_is_given_up() -> None:
    """It may be what kills them; the fourth is still tried again."""
    fewer, most = ended(*[LOST] * (MOST_LOST - 1)), ended(*[LOST] * MOST_LOST)

    assert (too_often_lost(fewer), too_often_lost(most)) == (False, True)
    assert decision("workerLost", fewer).action == Action.RETRY_ELSEWHERE
    assert decision("workerLost", most).action == Action.GIVE_UP


def test_a_sick_gpu_costs_the_job_nothing_until_it_has_met_too_many() -> None:
    """It may be what makes them sick."""
    before, last = JobHistory(counted=2, unhealthy=MOST_UNHEALTHY - 2), JobHistory(unhealthy=MOST_UNHEALTHY - 1)

    assert decision("gpuUnhealthy", before) == Decision(action=Action.RETRY_ELSEWHERE, counted=False, delay=600)
    assert decision("gpuUnhealthy", last).action == Action.GIVE_UP


def test_attempts_whose_end_is_known_are_not_lost() -> None:
    """Released, failed and lost ones may take turns."""
    assert not too_often_lost(ended(*["released", "failed", LOST] * (MOST_LOST - 1)))


@given(reasons, st.integers(0, 20), st.integers(1, 20), st.booleans(), st.lists(st.integers(1, 3600), min_size=1))
def test_a_decision_is_the_reasons_rule_or_to_give_up(
    reason: FailureReason, counted: int, max_attempts: int, steps_down_left: bool, delays: list[int]
) -> None:
    """A job is never tried harder than its reason allows, and waits only for another host."""
    before = JobHistory(counted=counted)
    done = decide(reason, before=before, max_attempts=max_attempts, steps_down_left=steps_down_left, delays=delays)

    assert done.action in (POLICY[reason].action, Action.GIVE_UP)
    assert done.counted == POLICY[reason].counts
    assert (done.delay in delays) if done.action is Action.RETRY_ELSEWHERE else (done.delay == 0)


@given(st.lists(reasons), st.integers(1, 20))
def test_a_job_never_has_more_counted_failures_than_its_limit(failures: list[FailureReason], max_attempts: int) -> None:
    """Whatever goes wrong in whatever order."""
    counted = 0
    for reason in failures:
        done = decision(reason, JobHistory(counted=counted), max_attempts=max_attempts)
        counted += done.counted
        if done.action is Action.GIVE_UP:
            break

    assert counted <= max_attempts
