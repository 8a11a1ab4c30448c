"""The policy: what follows from a failed attempt, by its reason (see docs/states.md)."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from training_schemas.progress import FailureReason
from training_worker.ledger.job_history import JobHistory

# A job whose attempts all end without a report may be what kills the workers.
MOST_LOST = 5
# A job whose attempts all end with an unhealthy GPU may be what makes the GPUs unhealthy.
MOST_UNHEALTHY = 3


class Action(StrEnum):
    """The action that follows a failed attempt."""

    RETRY_HERE = "retryHere"
    RETRY_ELSEWHERE = "retryElsewhere"
    GIVE_UP = "giveUp"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """The action for a reason; ``counts`` states whether such a failure counts towards the job's `maxAttempts`."""

    action: Action
    counts: bool


_GIVE_UP = Rule(action=Action.GIVE_UP, counts=True)
_RETRY = Rule(action=Action.RETRY_ELSEWHERE, counts=True)

POLICY: dict[FailureReason, Rule] = {
    FailureReason.DATASET_MISSING: _GIVE_UP,
    FailureReason.DATASET_INVALID: _GIVE_UP,
    FailureReason.MODEL_MISSING: _RETRY,
    FailureReason.MODEL_INVALID: _RETRY,
    FailureReason.CONFIG_INVALID: _GIVE_UP,
    FailureReason.OUTPUT_INVALID: _GIVE_UP,
    FailureReason.OUT_OF_MEMORY: Rule(action=Action.RETRY_HERE, counts=False),
    FailureReason.LOSS_NOT_FINITE: _GIVE_UP,
    FailureReason.DISK_FULL: _RETRY,
    FailureReason.TRAINER_CRASHED: _RETRY,
    FailureReason.STALLED: _RETRY,
    FailureReason.HOST_UNFIT: _RETRY,
    FailureReason.GPU_UNHEALTHY: Rule(action=Action.RETRY_ELSEWHERE, counts=False),
    FailureReason.WORKER_LOST: Rule(action=Action.RETRY_ELSEWHERE, counts=False),
    FailureReason.BUDGET_EXHAUSTED: _GIVE_UP,
}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The reaction to one failure; ``delay`` is in seconds, 0 unless the job is retried elsewhere."""

    action: Action
    counted: bool
    delay: int


def decide(
    reason: FailureReason, *, before: JobHistory, max_attempts: int, steps_down_left: bool, delays: Sequence[int]
) -> Decision:
    """Decide what follows from a failure for ``reason`` in a job with the history ``before`` it.

    ``steps_down_left`` states whether the job has settings left that need less memory. ``delays``, of which there is at
    least one, are the seconds to wait after the first counted failure, the second, and so on; the last one repeats.
    """
    rule = POLICY[reason]
    given_up = _gives_up(reason, rule, before, max_attempts, steps_down_left)
    action = Action.GIVE_UP if given_up else rule.action
    delay = delays[min(before.counted, len(delays) - 1)] if action is Action.RETRY_ELSEWHERE else 0
    return Decision(action=action, counted=rule.counts, delay=delay)


def _gives_up(reason: FailureReason, rule: Rule, before: JobHistory, max_attempts: int, steps_down_left: bool) -> bool:
    match reason:
        case FailureReason.OUT_OF_MEMORY:
            return not steps_down_left
        case FailureReason.GPU_UNHEALTHY:
            return before.unhealthy + 1 >= MOST_UNHEALTHY
        case FailureReason.WORKER_LOST:
            return too_often_lost(before)
        case _:
            return rule.counts and before.counted + 1 >= max_attempts


def too_often_lost(history: JobHistory) -> bool:
    """Return whether so many attempts never reported their end that the job is given up, as `workerLost`.

    This must be asked before the job is claimed: a running attempt looks like a lost one.
    """
    return history.lost >= MOST_LOST
