"""The lease on a real broker."""

from tests.support.owning import a_queued_job

from training_worker.broker.names import Names
from training_worker.broker.session import Session
from training_worker.ownership.lease import Lease, LeaseTerms, declare_lease


async def test_what_is_held_after_a_renewal_is_the_fresh_copy_alone(broker_url: str, prefix: str) -> None:
    """Not one that was in the queue before: that may have outlived the lease, and the job with it."""
    names, job = Names(prefix), a_queued_job()
    session = await Session.open(broker_url, names, client="tests")
    terms = LeaseTerms(queue=names.lease(job.job_id), seconds=60, exchange=names.retry, key=job.tier_key)
    queue = await declare_lease(session, terms)
    for _ in range(3):
        await session.publish("", queue.name, job.message())
    lease, fresh = await Lease.open(session, queue), job.message()

    await lease.renew(fresh)

    assert [fresh.correlation_id] == [copy.correlation_id for copy in lease._held]
    await lease.delete()
    await session.close()
