"""The protocol of ownership in every order of steps and faults; and each of its rules, by what breaks without it."""

import pytest
from msgspec.structs import replace
from tests.model.explorer import STUCK
from tests.model.ownership import explore
from tests.model.protocol import (
    PROTOCOL,
    Step,
    Steps,
    ack_copies,
    ack_tier,
    announce,
    await_lease,
    consume_lease,
    declare_lease,
    drop_copies,
    lock,
    make_folder,
    next_attempt,
    publish_end,
    publish_lease,
    read_ledger,
    remove_folder,
    requeue,
    stop_consuming,
    stop_trainer,
    unlock,
    write_end,
)


def without(steps: Steps, gone: Step) -> Steps:
    """The steps, but for one."""
    return tuple(step for step in steps if step is not gone)


def moved(steps: Steps, step: Step, *, before: Step) -> Steps:
    """The steps, with one of them earlier or later."""
    at = (rest := without(steps, step)).index(before)
    return (*rest[:at], step, *rest[at:])


P = PROTOCOL
BROKEN_BY = {
    "claim without the lock": ("doubled", replace(P, claim=without(P.claim, lock))),
    "claim without the ledger": ("twins", replace(P, claim=without(P.claim, read_ledger))),
    "claim with the ledger read before the lock": (
        "terminal",
        replace(P, claim=moved(P.claim, read_ledger, before=lock)),
    ),
    "claim unannounced": ("twins", replace(P, claim=without(P.claim, announce))),
    "announced once the folder is there": ("twins", replace(P, claim=(*without(P.claim, announce), announce))),
    "lease copy published before it is announced and consumed": (
        STUCK,
        replace(P, claim=moved(P.claim, publish_lease, before=announce)),
    ),
    "tier's delivery acknowledged before the lease copy": (
        "lost",
        replace(P, claim=moved(P.claim, ack_tier, before=publish_lease)),
    ),
    "copy of somebody else's job dropped": ("lost", replace(P, hand_over=(ack_tier,))),
    "copy handed over after it is acknowledged": ("lost", replace(P, hand_over=(ack_tier, publish_lease))),
    "renewal that acknowledges first": ("lost", replace(P, renew=(ack_copies, publish_lease, await_lease))),
    "rejoin without the lock": ("doubled", replace(P, rejoin=without(P.rejoin, lock))),
    "rejoin without the ledger": ("terminal", replace(P, rejoin=without(P.rejoin, read_ledger))),
    "rejoin with the ledger read before the lock": (
        "terminal",
        replace(P, rejoin=moved(P.rejoin, read_ledger, before=lock)),
    ),
    "rejoin without consuming the lease": (STUCK, replace(P, rejoin=without(P.rejoin, consume_lease))),
    "superseded, and the lock kept": (STUCK, replace(P, superseded=without(P.superseded, unlock))),
    "superseded, and the new owner's copies dropped": (
        STUCK,
        replace(P, superseded=(drop_copies, unlock, stop_trainer, remove_folder)),
    ),
    "an end found is not published again": ("lost", replace(P, end_found=without(P.end_found, publish_end))),
    "an end found, and its copies left": (STUCK, replace(P, end_found=without(P.end_found, drop_copies))),
    "end published before it is written": (
        "terminal",
        replace(P, finish=moved(P.finish, publish_end, before=write_end)),
    ),
    "copies dropped before the end is published": (
        "lost",
        replace(P, finish=moved(P.finish, drop_copies, before=publish_end)),
    ),
    "unlocked before the end is written": ("terminal", replace(P, finish=moved(P.finish, unlock, before=write_end))),
    "release with the copies dropped": ("lost", replace(P, release=(drop_copies, unlock, remove_folder))),
    "release that acknowledges before it requeues": (
        "lost",
        replace(P, release=moved(P.release, ack_copies, before=requeue)),
    ),
    "release that keeps consuming": (STUCK, replace(P, release=without(P.release, stop_consuming))),
    "release that keeps consuming until it is unlocked": (
        STUCK,
        replace(P, release=(unlock, stop_consuming, requeue, ack_copies, remove_folder)),
    ),
    "release that keeps consuming, and requeues before it unlocks": (
        "lost",
        replace(P, release=(requeue, unlock, ack_copies, remove_folder)),
    ),
    "next attempt unannounced": ("twins", replace(P, retry_here=(next_attempt, make_folder))),
}


def test_nothing_breaks_with_two_faults() -> None:
    """Whatever the order of steps and faults; `python -m tests.model.ownership` goes further."""
    verdict = explore(PROTOCOL, faults=2)

    assert (None, ()) == (verdict.broken, verdict.trace)
    assert verdict.states > 50_000


@pytest.mark.parametrize("change", BROKEN_BY)
def test_each_rule_is_needed(change: str) -> None:
    """Without it, one or two faults are enough."""
    broken, protocol = BROKEN_BY[change]

    assert broken == (explore(protocol, faults=1).broken or explore(protocol, faults=2).broken)


def test_a_trace_shows_how_it_came_to_that() -> None:
    """The last step is the one that breaks it."""
    verdict = explore(replace(P, claim=moved(P.claim, ack_tier, before=publish_lease)), faults=1)

    steps = ("consume", "declare_lease", "lock", "read_ledger", "announce", "consume_lease", "ack_tier")
    assert tuple(f"0: {step}" for step in steps) == verdict.trace


def test_the_lease_queue_may_be_declared_at_any_time_before_it_is_needed() -> None:
    """A claim declares it side by side with its other steps."""
    late = replace(
        P,
        claim=moved(P.claim, declare_lease, before=consume_lease),
        hand_over=(declare_lease, *P.hand_over),
        end_found=(declare_lease, *P.end_found),
    )

    assert explore(late, faults=1).broken is None
