"""What a worker says about itself, on a broker that is a list and can be away."""

import asyncio
from pathlib import Path

from msgspec.structs import replace
from tests.presets.workloads import workload
from tests.support.owning import PATIENCE, RecordingLink, speaker

from training_schemas.events import Event, Gpu, Taking, WorkerHeartbeat, WorkerOffline, WorkerOnline, decode_event
from training_schemas.jobs import EngineName, ModelFamily
from training_worker.attempts.step_rates import Rates
from training_worker.gpu.devices import Card
from training_worker.gpu.monitor import Monitor
from training_worker.observations import unobserved
from training_worker.queue.admission import Gate
from training_worker.settings import Settings
from training_worker.worker import heartbeat as presence_module
from training_worker.worker.heartbeat import Doing, Presence

CARDS = [
    Card(uuid="SIMULATED-0,SIMULATED-1", name="A", memory_mib=8192, simulated=True, usd_per_hour=None, count=2),
    Card(uuid="SIMULATED-2", name="B", memory_mib=24564, simulated=True, usd_per_hour=None),
]


def a_presence(link: RecordingLink, state_dir: Path, *, heartbeat: float = 0.05) -> tuple[Presence, Monitor]:
    """Of a worker that trains one job on its first two cards."""
    settings = Settings(state_dir=state_dir, heartbeat=heartbeat)
    jobs = {"SIMULATED-0,SIMULATED-1": "portrait"}
    doing = Doing(jobs, Taking.PAUSED)
    presence = Presence(speaker(link), settings, CARDS, [ModelFamily.FLUX], lambda: doing, Rates(state_dir))
    return presence, Monitor([(card, Gate()) for card in CARDS], settings, presence.quarantined, unobserved)


def said(link: RecordingLink) -> list[Event]:
    """What everybody heard."""
    return [decode_event(message.body).read() for _, _, message in link.published]


async def until_said(link: RecordingLink, count: int) -> None:
    """Wait until so much was said."""
    async with asyncio.timeout(PATIENCE):
        while len(link.published) < count:  # noqa: ASYNC110 - a list has no such event
            await asyncio.sleep(0.01)


async def test_a_worker_says_where_it_is_and_what_it_has(tmp_path: Path) -> None:
    """The tiers from the lowest to the highest; of a driver, nothing where there is no card."""
    link = RecordingLink()

    await a_presence(link, tmp_path)[0].appear()

    (online,) = said(link)
    assert isinstance(online, WorkerOnline)
    assert online.tiers == ["8gb", "24gb"]
    assert online.gpus[1] == Gpu(uuid="SIMULATED-2", name="B", memory_mib=24564, tier=online.tiers[1])
    assert list(online.versions) == ["python"]
    assert online.host


async def test_each_card_of_a_slot_is_shown_with_the_slots_job(tmp_path: Path) -> None:
    """What simulated ones do not tell is left out; nor is the disk known before there is a folder."""
    link = RecordingLink()
    presence, monitor = a_presence(link, tmp_path / "not-there")
    beating = asyncio.create_task(presence.beat(monitor))
    await until_said(link, 1)
    beating.cancel()

    beat = said(link)[0]
    assert isinstance(beat, WorkerHeartbeat)
    assert [(card.gpu, card.job) for card in beat.cards] == [
        ("SIMULATED-0", "portrait"),
        ("SIMULATED-1", "portrait"),
        ("SIMULATED-2", None),
    ]
    assert (beat.interval_seconds, beat.disk_free_mib, beat.taking) == (0.05, None, "paused")
    assert [(card.name, card.memory_mib) for card in beat.cards] == [("A", 8192), ("A", 8192), ("B", 24564)]
    assert "utilisation" not in link.published[0][2].body.decode()


async def test_measured_rates_are_said_once_on_each_connection(tmp_path: Path) -> None:
    """All of them at first, and what is new with the next heartbeat."""
    link, work = RecordingLink(), workload()
    Rates(tmp_path).note(CARDS[1], EngineName.DIFFUSERS, work, 2.0)
    presence, monitor = a_presence(link, tmp_path)
    await presence.appear()
    beating = asyncio.create_task(presence.beat(monitor))
    await until_said(link, 2)
    presence._rates.note(CARDS[1], EngineName.DIFFUSERS, replace(work, batch_size=2), 3.0)
    so_far = len(link.published)
    await until_said(link, so_far + 3)
    beating.cancel()
    await presence.appear()

    rates = [getattr(event, "rates") for event in said(link)]  # noqa: B009 - all of them have it
    steps = [[rate.seconds_per_step for rate in told] for told in rates]
    assert (steps[0], steps[-1]) == ([2.0], [3.0, 2.0])
    assert sorted(steps[1:-1], reverse=True) == [[3.0], *[[]] * (len(steps) - 3)]


async def test_rates_that_were_not_heard_are_said_again(tmp_path: Path) -> None:
    """The broker was away for a heartbeat."""
    link = RecordingLink()
    presence, monitor = a_presence(link, tmp_path)
    presence._rates.note(CARDS[1], EngineName.DIFFUSERS, workload(), 2.0)
    link.back.clear()
    beating = asyncio.create_task(presence.beat(monitor))
    await asyncio.sleep(0.5)

    link.back.set()
    await until_said(link, 1)
    beating.cancel()

    first = said(link)[0]
    assert isinstance(first, WorkerHeartbeat)
    assert [rate.seconds_per_step for rate in first.rates] == [2.0]


async def test_heartbeats_do_not_pile_up_while_the_broker_is_away(tmp_path: Path) -> None:
    """Those of the past say nothing of now; what happened to a card is told all the same."""
    link = RecordingLink()
    link.back.clear()
    presence, monitor = a_presence(link, tmp_path)
    tasks = [asyncio.create_task(presence.beat(monitor)), asyncio.create_task(presence.tell())]
    presence.quarantined("GPU-1", "too hot", recovered=False)
    presence.quarantined("GPU-1", "too hot", recovered=True)
    await asyncio.sleep(1)

    link.back.set()
    await until_said(link, 3)
    for task in tasks:
        task.cancel()

    what = [event.TYPE.split(".")[2] for event in said(link)]
    assert what[:4].count("quarantined") == 2
    assert what.count("heartbeat") < 5


async def test_the_last_word_comes_last_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A broker that is away keeps no daemon from its end."""
    link = RecordingLink()
    presence, _ = a_presence(link, tmp_path)
    telling = asyncio.create_task(presence.tell())
    presence.leave("SIGTERM")
    await presence.goodbye("SIGTERM")
    telling.cancel()

    assert [event.TYPE.split(".")[2] for event in said(link)] == ["draining", "offline"]
    assert isinstance(said(link)[-1], WorkerOffline)
    link.back.clear()
    await asyncio.wait_for(presence.goodbye("SIGTERM"), presence_module.GOODBYE_TIMEOUT + PATIENCE)
    assert len(link.published) == 2
