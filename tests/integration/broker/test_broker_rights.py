"""Users with the least rights, on a real broker: what each needs works, and what it must not do is refused."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import aio_pika
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused
from tests.support.broker_users import rabbitmqctl, user_url
from tests.support.fleet import Fleet

from training_schemas.events import JobCancelled, JobCompleted, JobFailed, JobProgress, JobQueued
from training_worker.broker.names import Names
from training_worker.broker.permissions import Role, commands
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.errors import BrokerError
from training_worker.testing.local_broker import PrivateBroker

pytestmark = pytest.mark.broker

# The second begins like the first: patterns must not mistake one for the other.
NAMES = Names("fleet")
OTHER = Names("fleet.two")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[PrivateBroker]:
    """A node with the three users of one fleet, and the worker of another, made as in docs/operations.md."""
    node = PrivateBroker(tmp_path_factory.mktemp("node"))
    if not node.can_start:
        missing("no rabbitmq-server is installed")
    with node:
        users = [(str(role), role, NAMES) for role in Role] + [("stranger", Role.WORKER, OTHER)]
        for user, role, names in users:
            rabbitmqctl(node, "add_user", user, "secret")
            for _, *arguments in commands(role, names, user=user):
                rabbitmqctl(node, *arguments)
        yield node


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, node: PrivateBroker) -> AsyncIterator[Fleet]:
    """Daemons that have a worker's rights; the tests' own look has all."""
    fleet = Fleet(tmp_path, node.url, NAMES.prefix)
    yield fleet
    await fleet.stop()
    await fleet.delete()


def api(node: PrivateBroker, user: str) -> AsyncTrainingWorkerAPI:
    """The client, with this user's rights."""
    return AsyncTrainingWorkerAPI(user_url(node, user), prefix=NAMES.prefix)


async def start(fleet: Fleet, node: PrivateBroker, **changes: Any) -> None:
    await fleet.start(amqp_url=user_url(node, "worker"), **changes)


async def test_a_worker_with_a_workers_rights_runs_a_whole_job_of_a_backend(fleet: Fleet, node: PrivateBroker) -> None:
    """The backend submits and follows it, declaring nothing; the worker had an empty broker to set up."""
    await start(fleet, node)

    job = fleet.job("whole")
    receipt = await api(node, "backend").submit_job(job)

    events = [event async for event in api(node, "backend").events("whole", since=receipt.submitted_at)]
    assert isinstance(events[-1], JobCompleted)


async def test_a_worker_retries_and_dead_letters_and_a_backend_requeues(fleet: Fleet, node: PrivateBroker) -> None:
    """What goes through the delay queues, the dead queue and the queue of several GPUs is in their rights, too."""
    await start(fleet, node, mode="crash")
    backend = api(node, "backend")
    await backend.submit_job(fleet.job("several", gpu_count=2))
    receipt = await backend.submit_job(fleet.job("broken", max_attempts=2))

    assert isinstance(await backend.wait("broken", since=receipt.submitted_at, limit=60), JobFailed)

    assert [dead_letter.job_id for dead_letter in await backend.dead_letters()] == ["broken"]
    await backend.requeue("broken")
    queued = await fleet.all_events(3, JobQueued)
    assert sorted(getattr(event, "job_id", "") for event in queued) == ["broken", "broken", "several"]


async def test_a_backend_cancels_and_commands(fleet: Fleet, node: PrivateBroker) -> None:
    """By the control exchange: to a job's owner, to the ledger, and to workers."""
    await start(fleet, node, mode="slow")
    await api(node, "backend").submit_job(fleet.job("long"))
    await fleet.until("long", JobProgress)

    assert await api(node, "backend").pause("w1")
    answer = await api(node, "backend").cancel("long")

    assert answer.state == "running"
    assert isinstance((await fleet.events("long"))[-1], JobCancelled)


async def test_a_dashboard_reads_the_log(fleet: Fleet, node: PrivateBroker) -> None:
    """All of it, and it needs no other right for that."""
    await start(fleet, node)
    await fleet.submit("seen")

    events = [event async for event in api(node, "dashboard").events("seen")]
    workers = await api(node, "dashboard").workers()

    assert isinstance(events[-1], JobCompleted)
    assert [one.worker for one in workers] == ["w1"]


Deed = Callable[[AbstractChannel], Awaitable[object]]


def publishes(exchange: str, key: str) -> Deed:
    async def deed(channel: AbstractChannel) -> None:
        where = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await where.publish(aio_pika.Message(b"{}"), key, mandatory=False)

    return deed


def reads(queue: str) -> Deed:
    async def deed(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).get(fail=False)

    return deed


def consumes(queue: str) -> Deed:
    async def deed(channel: AbstractChannel) -> None:
        async def on_message(message: AbstractIncomingMessage) -> None:
            raise AssertionError(message.body)

        await channel.set_qos(prefetch_count=1)
        await (await channel.get_queue(queue, ensure=False)).consume(on_message)

    return deed


def binds(exchange: str, key: str) -> Deed:
    async def deed(channel: AbstractChannel) -> None:
        await (await channel.declare_queue(exclusive=True)).bind(exchange, key)

    return deed


FORBIDDEN: list[tuple[str, str, Deed]] = [
    ("backend", "deletes the intake", lambda channel: channel.queue_delete(NAMES.intake)),
    ("backend", "deletes the dead queue", lambda channel: channel.queue_delete(NAMES.dead)),
    ("backend", "declares a queue", lambda channel: channel.declare_queue("anything", auto_delete=True)),
    ("backend", "deletes an exchange", lambda channel: channel.exchange_delete(NAMES.events)),
    ("backend", "publishes an event", publishes(NAMES.events, "job.x.completed")),
    ("backend", "publishes past the intake", publishes(NAMES.jobs, "flux.24gb")),
    ("backend", "publishes to a queue by name", publishes("", f"{NAMES.prefix}.tier.flux.24gb")),
    ("backend", "takes jobs", reads(NAMES.intake)),
    ("dashboard", "publishes a job", publishes(NAMES.jobs, "submit")),
    ("dashboard", "commands a worker", publishes(NAMES.control, "worker.all")),
    ("dashboard", "reads the ledger", consumes(NAMES.ledger)),
    ("dashboard", "reads the dead queue", reads(NAMES.dead)),
    ("dashboard", "declares a queue", lambda channel: channel.declare_queue("anything", auto_delete=True)),
    ("worker", "submits a job", publishes(NAMES.jobs, "submit")),
    ("worker", "commands other workers", publishes(NAMES.control, "worker.all")),
    ("worker", "listens to another fleet", binds(OTHER.control, "worker.all")),
    ("worker", "takes another fleet's jobs", reads(OTHER.intake)),
    ("worker", "deletes another fleet's queue", lambda channel: channel.queue_delete(OTHER.intake)),
    ("stranger", "takes this fleet's jobs", reads(NAMES.intake)),
    ("stranger", "deletes this fleet's queue", lambda channel: channel.queue_delete(NAMES.ledger)),
    ("stranger", "publishes an event in this fleet", publishes(NAMES.events, "job.x.completed")),
]


@pytest.mark.parametrize(("user", "deed", "do"), FORBIDDEN, ids=[f"{user}-{deed}" for user, deed, _ in FORBIDDEN])
async def test_what_a_user_must_not_do_is_refused(node: PrivateBroker, user: str, deed: str, do: Deed) -> None:
    """By the broker, whatever the program does."""
    await _declare(node)
    async with await aio_pika.connect(user_url(node, user)) as connection:
        channel = await connection.channel()

        with pytest.raises(ChannelAccessRefused, match="ACCESS_REFUSED"):
            await do(channel)


async def _declare(node: PrivateBroker) -> None:
    for names in (NAMES, OTHER):
        async with AsyncTrainingWorkerAPI(node.url, prefix=names.prefix)._session():
            pass


async def test_a_dashboard_that_submits_gets_an_error_with_the_reason(node: PrivateBroker, tmp_path: Path) -> None:
    """The client reports the broker's reason."""
    await _declare(node)
    job = Fleet(tmp_path, node.url, NAMES.prefix).job("no")

    with pytest.raises(BrokerError, match="ACCESS_REFUSED"):
        await api(node, "dashboard").submit_job(job)


async def test_where_no_worker_has_been_a_backend_gets_an_error_that_names_what_is_refused(
    node: PrivateBroker, tmp_path: Path
) -> None:
    """Nothing is declared there, and it may not."""
    job = Fleet(tmp_path, node.url, "nowhere").job("early")

    with pytest.raises(BrokerError, match="ACCESS_REFUSED"):
        await AsyncTrainingWorkerAPI(user_url(node, "backend"), prefix="nowhere").submit_job(job)
