"""What a worker does, step by step."""

from collections.abc import Callable

import msgspec
from tests.model.state import State, give_up, renumber

# A step of a worker; None while it cannot be done. It has already left the worker's list when it is called.
Step = Callable[[State, int, "Protocol"], State | None]
Steps = tuple[Step, ...]


def lock(state: State, me: int, protocol: "Protocol") -> State | None:
    """Get the lock; if it is held, hand over the copy (claim), or see whether the job is still ours (rejoin)."""
    if not state.locked:
        return state.link(me, lock=True)
    if not state.workers[me].folder:
        return state.worker(me, todo=protocol.hand_over, attempt=0)
    if passed_on(state, me):
        return state.worker(me, todo=protocol.superseded)
    return None


def read_ledger(state: State, me: int, protocol: "Protocol") -> State:
    """See whether there is an end, and which attempt is the last: ours is the next, or superseded if not that one."""
    worker = state.workers[me]
    if not worker.folder:
        return state.worker(me, todo=protocol.end_found) if state.ends else state.worker(me, attempt=state.claimed + 1)
    if passed_on(state, me):
        return state.worker(me, todo=protocol.superseded)
    if state.ends:
        return state.worker(me, todo=(*worker.todo, *protocol.own_end_found))
    return state


def passed_on(state: State, me: int) -> bool:
    """Whether the ledger's last claim is neither the run folder's nor one that this daemon knows of."""
    worker = state.workers[me]
    return not worker.named or state.claimed not in (worker.folder, worker.attempt)


def announce(state: State, me: int, protocol: "Protocol") -> State:
    """Write `claimed` with our attempt's number."""
    claimed = max(state.claimed, state.workers[me].attempt)
    return renumber(state.worker(1 - me, named=False).worker(me, named=True).but(claimed=claimed))


def next_attempt(state: State, me: int, protocol: "Protocol") -> State:
    """Count our own attempt up."""
    return state.worker(me, attempt=state.workers[me].folder + 1)


def declare_lease(state: State, me: int, protocol: "Protocol") -> State:
    """Make sure that there is a lease queue."""
    return state.but(queue=True)


def consume_lease(state: State, me: int, protocol: "Protocol") -> State:
    """Consume the lease queue; if somebody has deleted it meanwhile, the connection is given up."""
    return state.link(me, consuming=True) if state.queue else give_up(state, me)


def stop_consuming(state: State, me: int, protocol: "Protocol") -> State:
    """End the consumer on the lease queue; what it was given stays held."""
    return state.link(me, consuming=False)


def publish_lease(state: State, me: int, protocol: "Protocol") -> State:
    """Publish a copy to the lease queue; if somebody has deleted it meanwhile, the connection is given up."""
    return state.but(lease=state.lease + 1) if state.queue else give_up(state, me)


def await_lease(state: State, me: int, protocol: "Protocol") -> State | None:
    """Wait until the published copy is held."""
    link = state.workers[me].link
    return state if link and link.lease and not state.lease else None


def ack_tier(state: State, me: int, protocol: "Protocol") -> State:
    """Acknowledge the tier queue's delivery."""
    return state.link(me, tier=0)


def ack_older(state: State, me: int, protocol: "Protocol") -> State:
    """Acknowledge all lease copies but the last."""
    return state.link(me, lease=1)


def ack_copies(state: State, me: int, protocol: "Protocol") -> State:
    """Acknowledge all lease copies that are held."""
    return state.link(me, lease=0)


def make_folder(state: State, me: int, protocol: "Protocol") -> State:
    """Write the run folder of the attempt that was announced."""
    return state.worker(me, folder=state.workers[me].attempt, decided="", trainer="none")


def remove_folder(state: State, me: int, protocol: "Protocol") -> State:
    """Forget the job."""
    return state.worker(me, attempt=0, folder=0, decided="", trainer="none")


def stop_trainer(state: State, me: int, protocol: "Protocol") -> State:
    """Stop the trainer, if there is one."""
    return state.worker(me, trainer="stopped")


def write_end(state: State, me: int, protocol: "Protocol") -> State:
    """Write the end into the ledger."""
    return state.but(ends=state.ends + 1)


def publish_end(state: State, me: int, protocol: "Protocol") -> State:
    """Publish the event of the end; it has the same id each time."""
    return state.but(published=True)


def drop_copies(state: State, me: int, protocol: "Protocol") -> State:
    """Delete the lease queue, with what is held of it."""
    return state.link(me, lease=0, consuming=False).but(lease=0, queue=False)


def unlock(state: State, me: int, protocol: "Protocol") -> State:
    """Free the lock."""
    return state.link(me, lock=False)


def requeue(state: State, me: int, protocol: "Protocol") -> State:
    """Publish a copy to the tier queue, or, to try again elsewhere, to a delay queue that ends there."""
    return state.but(tier=state.tier + 1)


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker does, step by step. A test of a rule removes one, or changes their order."""

    claim: Steps = (
        declare_lease,
        lock,
        read_ledger,
        announce,
        consume_lease,
        publish_lease,
        await_lease,
        ack_older,
        ack_tier,
        make_folder,
    )
    # A copy of a job that somebody else owns is not simply dropped: should they die now, it is the last one.
    hand_over: Steps = (publish_lease, ack_tier)
    renew: Steps = (publish_lease, await_lease, ack_older)
    rejoin: Steps = (lock, read_ledger, declare_lease, consume_lease, publish_lease, await_lease, ack_older)
    superseded: Steps = (unlock, stop_trainer, remove_folder)
    end_found: Steps = (consume_lease, publish_end, ack_tier, drop_copies, unlock, remove_folder)
    own_end_found: Steps = (publish_end, drop_copies, unlock, remove_folder)
    finish: Steps = (write_end, publish_end, drop_copies, unlock, remove_folder)
    # Once unlocked, the next owner's copy would be given to a consumer that is still there.
    release: Steps = (stop_consuming, unlock, requeue, ack_copies, remove_folder)
    retry_here: Steps = (next_attempt, announce, make_folder)


PROTOCOL = Protocol()
