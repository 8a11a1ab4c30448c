"""What a worker publishes about itself, on a broker that is a list and can be away."""

import asyncio
from pathlib import Path

from msgspec.structs import replace
from tests.presets.workloads import workload
from tests.support.owning import TIMEOUT, RecordingLink, publisher

from training_schemas.events import Event, Gpu, Taking, WorkerHeartbeat, WorkerOffline, WorkerOnline, decode_event
from training_schemas.jobs import EngineName, ModelFamily
from training_worker.attempts.step_rates import StepRates
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.monitor import Monitor
from training_worker.observations import unobserved
from training_worker.queue.admission import Admission
from training_worker.selftest.gpu_tests import GpuTests
from training_worker.settings import Settings
from training_worker.worker import heartbeat as heartbeat_module
from training_worker.worker.heartbeat import Doing, Heartbeat

GPUS = [
    GpuDevice(uuid="SIMULATED-0,SIMULATED-1", name="A", memory_mib=8192, simulated=True, usd_per_hour=None, count=2),
    GpuDevice(uuid="SIMULATED-2", name="B", memory_mib=24564, simulated=True, usd_per_hour=None),
]


def a_heartbeat(connection: RecordingLink, state_dir: Path, *, interval: float = 0.05) -> tuple[Heartbeat, Monitor]:
    """Of a worker that trains one job on its first two GPUs."""
    settings = Settings(state_dir=state_dir, heartbeat=interval)
    jobs = {"SIMULATED-0,SIMULATED-1": "portrait"}
    doing = Doing(jobs, Taking.PAUSED)
    heartbeat = Heartbeat(
        publisher(connection),
        settings,
        GPUS,
        [ModelFamily.FLUX],
        lambda: doing,
        StepRates(state_dir),
        GpuTests(settings, unobserved),
    )
    return heartbeat, Monitor([(device, Admission()) for device in GPUS], settings, heartbeat.quarantined, unobserved)


def published_events(connection: RecordingLink) -> list[Event]:
    """All events that were published."""
    return [decode_event(message.body).read() for _, _, message in connection.published]


async def until_published(connection: RecordingLink, count: int) -> None:
    """Wait until so much was published."""
    async with asyncio.timeout(TIMEOUT):
        while len(connection.published) < count:  # noqa: ASYNC110 - a list has no such event
            await asyncio.sleep(0.01)


async def test_a_worker_reports_where_it_is_and_what_it_has(tmp_path: Path) -> None:
    """The tiers from the lowest to the highest; of a driver, nothing where there is no GPU."""
    connection = RecordingLink()

    await a_heartbeat(connection, tmp_path)[0].appear()

    (online,) = published_events(connection)
    assert isinstance(online, WorkerOnline)
    assert online.tiers == ["8gb", "24gb"]
    assert online.gpus[1] == Gpu(uuid="SIMULATED-2", name="B", memory_mib=24564, tier=online.tiers[1])
    assert list(online.versions) == ["python"]
    assert online.host


async def test_each_gpu_of_a_slot_is_shown_with_the_slots_job(tmp_path: Path) -> None:
    """What simulated ones do not report is left out; nor is the disk known before there is a folder."""
    connection = RecordingLink()
    heartbeat, monitor = a_heartbeat(connection, tmp_path / "not-there")
    beating = asyncio.create_task(heartbeat.beat(monitor))
    await until_published(connection, 1)
    beating.cancel()

    beat = published_events(connection)[0]
    assert isinstance(beat, WorkerHeartbeat)
    assert [(device.gpu, device.job) for device in beat.cards] == [
        ("SIMULATED-0", "portrait"),
        ("SIMULATED-1", "portrait"),
        ("SIMULATED-2", None),
    ]
    assert (beat.interval_seconds, beat.disk_free_mib, beat.taking) == (0.05, None, "paused")
    assert [(device.name, device.memory_mib) for device in beat.cards] == [("A", 8192), ("A", 8192), ("B", 24564)]
    assert "utilisation" not in connection.published[0][2].body.decode()


async def test_measured_rates_are_published_once_on_each_connection(tmp_path: Path) -> None:
    """All of them at first, and what is new with the next heartbeat."""
    connection, work = RecordingLink(), workload()
    StepRates(tmp_path).note(GPUS[1], EngineName.DIFFUSERS, work, 2.0)
    heartbeat, monitor = a_heartbeat(connection, tmp_path)
    await heartbeat.appear()
    beating = asyncio.create_task(heartbeat.beat(monitor))
    await until_published(connection, 2)
    heartbeat._rates.note(GPUS[1], EngineName.DIFFUSERS, replace(work, batch_size=2), 3.0)
    so_far = len(connection.published)
    await until_published(connection, so_far + 3)
    beating.cancel()
    await heartbeat.appear()

    rates = [getattr(event, "rates") for event in published_events(connection)]  # noqa: B009 - all of them have it
    steps = [[rate.seconds_per_step for rate in published] for published in rates]
    assert (steps[0], steps[-1]) == ([2.0], [3.0, 2.0])
    assert sorted(steps[1:-1], reverse=True) == [[3.0], *[[]] * (len(steps) - 3)]


async def test_rates_that_were_not_confirmed_are_published_again(tmp_path: Path) -> None:
    """The broker was away for a heartbeat."""
    connection = RecordingLink()
    heartbeat, monitor = a_heartbeat(connection, tmp_path)
    heartbeat._rates.note(GPUS[1], EngineName.DIFFUSERS, workload(), 2.0)
    connection.back.clear()
    beating = asyncio.create_task(heartbeat.beat(monitor))
    await asyncio.sleep(0.5)

    connection.back.set()
    await until_published(connection, 1)
    beating.cancel()

    first = published_events(connection)[0]
    assert isinstance(first, WorkerHeartbeat)
    assert [rate.seconds_per_step for rate in first.rates] == [2.0]


async def test_heartbeats_do_not_pile_up_while_the_broker_is_away(tmp_path: Path) -> None:
    """Those of the past are of no use now; what happened to a GPU is published all the same."""
    connection = RecordingLink()
    connection.back.clear()
    heartbeat, monitor = a_heartbeat(connection, tmp_path)
    tasks = [asyncio.create_task(heartbeat.beat(monitor)), asyncio.create_task(heartbeat.report())]
    heartbeat.quarantined("GPU-1", "too hot", recovered=False)
    heartbeat.quarantined("GPU-1", "too hot", recovered=True)
    await asyncio.sleep(1)

    connection.back.set()
    await until_published(connection, 3)
    for task in tasks:
        task.cancel()

    what = [event.TYPE.split(".")[2] for event in published_events(connection)]
    assert what[:4].count("quarantined") == 2
    assert what.count("heartbeat") < 5


async def test_the_last_event_comes_last_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A broker that is away keeps no daemon from its end."""
    connection = RecordingLink()
    heartbeat, _ = a_heartbeat(connection, tmp_path)
    reporting = asyncio.create_task(heartbeat.report())
    heartbeat.leave("SIGTERM")
    await heartbeat.goodbye("SIGTERM")
    reporting.cancel()

    assert [event.TYPE.split(".")[2] for event in published_events(connection)] == ["draining", "offline"]
    assert isinstance(published_events(connection)[-1], WorkerOffline)
    connection.back.clear()
    await asyncio.wait_for(heartbeat.goodbye("SIGTERM"), heartbeat_module.GOODBYE_TIMEOUT + TIMEOUT)
    assert len(connection.published) == 2
