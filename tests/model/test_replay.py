"""The real code does the model's steps on a real broker, and comes to the model's states."""

import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.model.gate import DisagreementError
from tests.model.replay import replay, shortest, through, walk

from training_schemas.ledger import AttemptFailed, Released
from training_worker.ownership.claim import Claim
from training_worker.ownership.lease import Lease
from training_worker.ownership.ownership import OwnedSession, Ownership
from training_worker.queue.job_message import QueuedJob

WALKS = int(os.environ.get("REPLAY_WALKS", "12"))

Wrong = Callable[..., Coroutine[Any, Any, object]]


async def hand_over_nothing(claim: Claim) -> None:
    """A copy of somebody else's job is simply dropped."""


async def ack_and_lease(claim: Claim) -> None:
    """The tier queue's delivery is acknowledged before the lease has a copy."""
    await claim.acknowledge()
    assert claim._lease is not None
    await claim._lease.renew(claim._job.message())


async def drop_and_give_back(ownership: Ownership, entry: Released | AttemptFailed, job: QueuedJob, delay: int) -> bool:
    """A job that is released is dropped before it is requeued."""

    async def give_back(owned_session: OwnedSession) -> None:
        await owned_session.lease.stop_consuming()
        await owned_session.lock.release()
        await owned_session.lease.drop()
        await owned_session.session.publish(ownership.connection.names.jobs, job.tier_key, job.message())
        ownership._over.set()

    return await ownership._with_owned_session(give_back)


async def give_back_late(ownership: Ownership, entry: Released | AttemptFailed, job: QueuedJob, delay: int) -> bool:
    """A job that is released at once comes a minute later."""
    return await GIVE_BACK(ownership, entry, job, 60)


async def believe(ownership: Ownership, session: object) -> bool:
    """Whoever gets the lock believes that the job is still its own."""
    return False


async def keep_consuming(lease: Lease) -> None:
    """The next owner's copies are consumed, too."""


GIVE_BACK = Ownership.give_back

WRONG: dict[str, tuple[type, str, Wrong, str, tuple[str, ...]]] = {
    "copy of somebody else's job dropped": (
        Claim,
        "hand_over",
        hand_over_nothing,
        "the model's next step is publish_lease, the code's is ack_tier",
        ("publish_lease", "ack_tier"),
    ),
    "tier's delivery acknowledged before the lease copy": (
        Claim,
        "lease_copy",
        ack_and_lease,
        "the model's next step is publish_lease, the code's is ack_tier",
        ("ack_tier", "make_folder"),
    ),
    "release that acknowledges before it requeues": (
        Ownership,
        "give_back",
        drop_and_give_back,
        "the model's next step is requeue, the code's is ack_lease",
        ("requeue", "ack_copies", "remove_folder"),
    ),
    "release that keeps consuming": (
        Lease,
        "stop_consuming",
        keep_consuming,
        "the model's next step is stop_consuming, the code's is unlock",
        ("requeue", "ack_copies", "remove_folder"),
    ),
    "release that puts the copy somewhere else": (
        Ownership,
        "give_back",
        give_back_late,
        "tier: the model has 1, the broker 0",
        ("requeue", "ack_copies", "remove_folder"),
    ),
    "rejoin that believes the lock": (
        Ownership,
        "_has_passed_on",
        believe,
        "the code has not come as far as the model",
        ("stop_trainer", "remove_folder"),
    ),
}


async def test_the_shortest_way_to_each_step(broker_url: str, prefix: str) -> None:
    """Each step in each place, and all that can go wrong, at least once."""
    assert await replay(shortest(faults=1), broker_url, prefix) > 500


async def test_random_walks_with_faults(broker_url: str, prefix: str) -> None:
    """With up to three faults each; `python -m tests.model.replay --walks 500` follows more of them."""
    assert await replay([walk(seed) for seed in range(WALKS)], broker_url, prefix) > 20 * WALKS


@pytest.mark.parametrize("change", WRONG)
async def test_code_that_does_something_else_is_found(
    change: str, broker_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step that is another, or that leads elsewhere, is named."""
    owner, name, wrong, found, place = WRONG[change]
    monkeypatch.setattr(owner, name, wrong)

    with pytest.raises(DisagreementError) as caught:
        await replay([min(through(*place), key=len)], broker_url, prefix)

    assert found == str(caught.value).splitlines()[0]
