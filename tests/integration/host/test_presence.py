"""What a real daemon says about itself and its cards."""

import asyncio
import signal
from typing import Any

from tests.support.fleet import TIMEOUT, Fleet
from tests.support.nvml import GPU_IS_LOST, Host

from training_schemas.events import (
    CardState,
    JobClaimed,
    JobCompleted,
    JobProgress,
    JobRetrying,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerOffline,
    WorkerOnline,
    WorkerQuarantined,
)

FAST: dict[str, Any] = {"heartbeat": 0.3, "card_check_interval": 0.2, "healthy_probes": 2, "driver_timeout": 2}
HOST = ("driver 550.54.15", "cuda 12040")
CARD = "card 0 24564 GPU-1 NVIDIA GeForce RTX 4090"
OTHER = "card 0 24564 GPU-2 NVIDIA GeForce RTX 4090"


async def beat_with(fleet: Fleet, *, job: str | None) -> WorkerHeartbeat:
    """The first heartbeat in which the first card has this job."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            for _, event in await fleet.log():
                if isinstance(event, WorkerHeartbeat) and event.cards[0].job == job:
                    return event
            await asyncio.sleep(0.2)


async def changes(fleet: Fleet, count: int) -> list[tuple[str, str, bool]]:
    """The first changes of cards."""
    events = await fleet.all_events(count, WorkerQuarantined)
    return [(event.gpu, event.reason, event.recovered) for event in events if isinstance(event, WorkerQuarantined)]


async def test_a_worker_says_what_it_is_how_it_does_and_that_it_leaves(fleet: Fleet, host: Host) -> None:
    """From the card's own figures, with the job that is on it."""
    host.says(*HOST, CARD, "held 1000", "temperature 61", "power 300500", "utilisation 97")
    fleet.host = host.variables
    daemon = await fleet.start(mode="slow", **FAST)
    (online,) = await fleet.all_events(1, WorkerOnline)
    idle = await beat_with(fleet, job=None)
    await fleet.submit("portrait", max_train_steps=600)
    await fleet.until("portrait", JobProgress)
    busy = await beat_with(fleet, job="portrait")
    daemon.signal(signal.SIGTERM)
    await daemon.ended()
    last = [event for _, event in await fleet.log() if isinstance(event, WorkerDraining | WorkerOffline)]
    # The log's own marker comes from no worker.
    last = [event for event in last if event.worker == "w1"]

    assert isinstance(online, WorkerOnline)
    assert (online.tiers, online.engines) == (["24gb"], ["diffusers"])
    assert online.versions.items() >= {"driver": "550.54.15", "cuda": "12.4"}.items()
    assert idle.disk_free_mib
    state = CardState(
        gpu="GPU-1",
        name="NVIDIA GeForce RTX 4090",
        memory_mib=24564,
        job="portrait",
        free_mib=23564,
        utilisation=97,
        temperature_c=61,
        power_w=300.5,
    )
    assert busy.cards == [state]
    assert last == [
        WorkerDraining(worker="w1", simulated=False, why="SIGTERM", jobs=["portrait"]),
        WorkerOffline(worker="w1", simulated=False, why="SIGTERM"),
    ]


async def test_a_sick_card_takes_no_job_until_it_has_recovered(fleet: Fleet, host: Host) -> None:
    """The other card of the host goes on."""
    host.says(CARD, "temperature 97", OTHER)
    fleet.host = host.variables
    await fleet.start(**FAST)
    hot = ("GPU-1", "too hot: 97 C, over 92 C", False)
    assert await changes(fleet, 1) == [hot]
    for number in range(3):
        await fleet.submit(f"job-{number}")
        claimed = await fleet.until(f"job-{number}", JobClaimed)
        assert isinstance(claimed, JobClaimed)
        assert claimed.gpu.uuid == "GPU-2"
        await fleet.until(f"job-{number}", JobCompleted)
    host.says(CARD, "temperature 60", f"card {GPU_IS_LOST} 24564 GPU-2 NVIDIA GeForce RTX 4090")

    told = await changes(fleet, 3)
    await fleet.submit("last")
    claimed = await fleet.until("last", JobClaimed)

    lost = ("GPU-2", "lost: the driver does not show it any more", False)
    assert sorted(told) == sorted([hot, ("GPU-1", hot[1], True), lost])
    assert isinstance(claimed, JobClaimed)
    assert claimed.gpu.uuid == "GPU-1"


async def test_what_a_sick_card_breaks_is_not_held_against_the_job(fleet: Fleet, host: Host) -> None:
    """The card is looked at when the trainer fails, not only at its next turn."""
    host.says(CARD)
    fleet.host = host.variables
    await fleet.start(mode="crash", **FAST | {"card_check_interval": 600})
    await beat_with(fleet, job=None)
    host.says(CARD, "ecc 0", "temperature 99")

    await fleet.submit("portrait", max_attempts=1)
    retrying = await fleet.until("portrait", JobRetrying)

    assert isinstance(retrying, JobRetrying)
    assert (retrying.reason, retrying.counted) == ("gpuUnhealthy", False)
    assert retrying.message.startswith("the GPU is unhealthy: too hot: 99 C, over 92 C; ")
    assert await changes(fleet, 1) == [("GPU-1", "too hot: 99 C, over 92 C", False)]


async def test_a_job_waits_for_memory_that_others_hold(fleet: Fleet, host: Host) -> None:
    """It is not claimed meanwhile, so that nothing counts against it; the card takes no job in vain."""
    host.says(CARD, "held 20000", "process 71 20000")
    fleet.host = host.variables
    await fleet.start(**FAST)
    await beat_with(fleet, job=None)

    await fleet.submit("portrait", max_attempts=1)
    ((gpu, reason, recovered),) = await changes(fleet, 1)
    host.says(CARD)
    completed = await fleet.until("portrait", JobCompleted)

    assert (gpu, recovered) == ("GPU-1", False)
    assert reason.startswith("too little free memory: 4564 MiB, where a job needs ")
    assert (await changes(fleet, 2))[1] == ("GPU-1", reason, True)
    assert isinstance(completed, JobCompleted)
    assert completed.attempt == 1
    assert [one.outcome for one in completed.attempts] == ["completed"]


async def test_a_card_that_is_lost_at_the_start_does_not_keep_the_others_from_work(fleet: Fleet, host: Host) -> None:
    """It is shown, and why it has no jobs."""
    host.says(f"card {GPU_IS_LOST} 24564 GPU-1 NVIDIA GeForce RTX 4090", OTHER)
    fleet.host = host.variables
    await fleet.start(**FAST)
    beat = await beat_with(fleet, job=None)

    await fleet.submit("portrait")
    claimed = await fleet.until("portrait", JobClaimed)

    assert [(device.gpu, device.quarantined) for device in beat.cards] == [
        ("unreadable-0", "GPU is lost"),
        ("GPU-2", None),
    ]
    assert isinstance(claimed, JobClaimed)
    assert claimed.gpu.uuid == "GPU-2"


async def test_an_xid_takes_a_card_out(fleet: Fleet, host: Host) -> None:
    """Though its readings are good."""
    host.says(CARD)
    fleet.host = host.variables
    await fleet.start(**FAST)
    await beat_with(fleet, job=None)

    host.says(CARD, "xid 95")

    assert await changes(fleet, 1) == [("GPU-1", "Xid 95: uncontained memory error", False)]


async def test_a_driver_that_hangs_hangs_neither_the_daemon_nor_its_end(fleet: Fleet, host: Host) -> None:
    """It says so, goes on beating, and stops when it is told to."""
    host.says(CARD)
    fleet.host = host.variables
    daemon = await fleet.start(**FAST)
    await beat_with(fleet, job=None)

    host.says(CARD, "hang")
    ((gpu, reason, recovered),) = await changes(fleet, 1)
    beats = len(await fleet.all_event_ids(WorkerHeartbeat))
    await fleet.all_events(beats + 3, WorkerHeartbeat)
    daemon.signal(signal.SIGTERM)

    assert (gpu, recovered) == ("GPU-1", False)
    assert reason == "the driver cannot read it: the driver has not answered within 2 s"
    assert await daemon.ended() == 0
