"""A job whose worker loses the broker for a while: it is trained on, and ends once."""

import pytest
from tests.support.fleet import Fleet
from tests.support.proxy import Proxy

from training_schemas.events import JobClaimed, JobCompleted, JobProgress
from training_schemas.ledger import Claimed, Completed

pytestmark = pytest.mark.broker


async def test_a_cut_connection_does_not_disturb_the_training(proxy: Proxy, fleet: Fleet) -> None:
    """The worker gets its lock and lease again; there is one attempt, and no event is missing."""
    daemon = await fleet.start(mode="slow", amqp_url=proxy.url)
    await fleet.submit("portrait", max_train_steps=25)
    await fleet.until("portrait", JobProgress, count=3)

    proxy.cut()
    events = [event for event in await fleet.events("portrait") if event.attempt == 1]

    assert isinstance(events[-1], JobCompleted)
    assert sorted({event.sequence for event in events}) == list(range(1, len({e.sequence for e in events}) + 1))
    assert [type(entry) for entry in await fleet.ledger() if isinstance(entry, Claimed | Completed)] == [
        Claimed,
        Completed,
    ]
    assert len(daemon.logged("trainer_started")) == len(daemon.logged("rejoined")) == 1


async def test_a_job_that_ends_while_the_broker_is_away_is_reported_when_it_is_back(proxy: Proxy, fleet: Fleet) -> None:
    """The result waits for the broker; nothing is trained again."""
    daemon = await fleet.start(mode="slow", amqp_url=proxy.url)
    await fleet.submit("portrait", max_train_steps=15)
    await fleet.until("portrait", JobProgress, count=2)

    proxy.down()
    await daemon.until_logged("trainer_ended")
    await proxy.up()

    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)
    assert len(daemon.logged("trainer_started")) == 1


async def test_a_worker_that_was_away_for_longer_than_its_lease_has_lost_the_job(proxy: Proxy, fleet: Fleet) -> None:
    """Another worker takes the job over; the first one stops its trainer on learning of it, and publishes nothing."""
    first = await fleet.start("first", mode="slow", amqp_url=proxy.url, lease=2)
    await fleet.submit("portrait", max_train_steps=200)
    await fleet.until("portrait", JobProgress, count=3)
    await fleet.start("second", mode="slow", lease=2)

    proxy.down()
    await fleet.until("portrait", JobClaimed, count=2)
    await proxy.up()
    await first.until_logged("superseded")
    await first.until_logged("trainer_ended")
    await fleet.until("portrait", JobProgress, count=8)
    await fleet.api.cancel("portrait")
    events = await fleet.events("portrait")

    claimed = [event for event in events if isinstance(event, JobClaimed)]
    assert [(event.worker, event.attempt) for event in claimed] == [("first", 1), ("second", 2)]
    assert events[-1].worker == "second"
    assert [entry["outcome"] for entry in first.logged("job_ended")] == ["superseded"]


async def test_messages_that_came_while_the_broker_was_away_are_consumed_after(proxy: Proxy, fleet: Fleet) -> None:
    """A worker that lost the broker while idle goes back to work by itself."""
    daemon = await fleet.start(amqp_url=proxy.url)
    proxy.down()
    await daemon.until_logged("broker_lost")
    await fleet.submit("portrait")
    await proxy.up()

    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)


async def test_a_stream_that_an_operator_deleted_is_declared_again(fleet: Fleet) -> None:
    """Events that come back because nothing consumes them are published again, and the daemon continues."""
    daemon = await fleet.start(mode="slow")
    await fleet.submit("portrait", max_train_steps=20)
    await fleet.until("portrait", JobProgress)

    async with fleet.channel() as channel:
        await channel.queue_delete(fleet.names.events_log)
    await daemon.until_logged("rejoined")

    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)
    assert len(daemon.logged("trainer_started")) == 1
