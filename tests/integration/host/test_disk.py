"""Room on a host's disks, and what is removed from them, with real daemons."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.fleet import GPU_24, Fleet
from tests.support.nvml import Host

from training_schemas.events import JobCheckpoint, JobClaimed, JobCompleted, JobFailed, JobProgress, JobRetrying
from training_worker.storage.disk_usage import DAY

pytestmark = pytest.mark.broker

MIB = 2**20
GPUS = tuple(f"gpu 0 24564 GPU-{number} NVIDIA GeForce RTX 4090" for number in (1, 2))
# A LoRA of FLUX that trains for so few steps needs some 410 MiB: one fits, and two do not.
ROOM = 600 * MIB


@pytest.fixture
def disk(small_disk: Callable[[Path, int], Path], fleet: Fleet, host: Host) -> Path:
    """Where outputs go; the host has two GPUs."""
    host.describe(*GPUS)
    fleet.host = host.variables
    return small_disk(fleet.folder / "small", ROOM)


async def turns(fleet: Fleet) -> list[tuple[str, str, int]]:
    """Which jobs were claimed and completed, one after the other, with their attempts."""
    events = [event for _, event in await fleet.log() if isinstance(event, JobClaimed | JobCompleted | JobRetrying)]
    return [(type(event).__name__, event.job_id, event.attempt) for event in events]


async def test_of_two_jobs_that_do_not_fit_together_one_waits_for_the_other(fleet: Fleet, disk: Path) -> None:
    """Though both GPUs are idle, and neither has written anything yet; the wait is no attempt."""
    daemon = await fleet.start(mode="slow", output_roots=[str(disk)])
    for job in ("a", "b"):
        await fleet.submit(job, max_train_steps=20, max_attempts=1, output_path=str(disk / job))

    for job in ("a", "b"):
        assert isinstance((await fleet.events(job))[-1], JobCompleted)

    first, second = ["a", "b"] if (await turns(fleet))[0][1] == "a" else ["b", "a"]
    assert await turns(fleet) == [(kind, job, 1) for job in (first, second) for kind in ("JobClaimed", "JobCompleted")]
    assert {entry["job"] for entry in daemon.logged("no_room_for_now")} == {second}


async def test_a_run_that_is_re_attached_keeps_its_room(fleet: Fleet, disk: Path) -> None:
    """From the start of the next daemon on, before any slot consumes a job."""
    first = await fleet.start(mode="slow", output_roots=[str(disk)])
    await fleet.submit("a", max_train_steps=60, output_path=str(disk / "a"))
    await fleet.until("a", JobProgress)
    first.kill()
    await fleet.submit("b", max_train_steps=2, output_path=str(disk / "b"))

    second = await fleet.start(mode="slow", output_roots=[str(disk)])
    await second.until_logged("no_room_for_now")
    assert isinstance((await fleet.events("b"))[-1], JobCompleted)

    assert [turn[:2] for turn in await turns(fleet)] == [
        ("JobClaimed", "a"),
        ("JobCompleted", "a"),
        ("JobClaimed", "b"),
        ("JobCompleted", "b"),
    ]


async def test_a_job_that_never_fits_is_left_to_others(fleet: Fleet, disk: Path) -> None:
    """Waiting would not help. One that fits is trained meanwhile, and is not affected."""
    await fleet.start(mode="slow", output_roots=[str(disk)])
    await fleet.submit("small", max_train_steps=20, output_path=str(disk / "small"))
    await fleet.until("small", JobProgress)

    await fleet.submit("large", "SDXL_FINETUNE", max_attempts=1, output_path=str(disk / "large"))

    failed = (await fleet.events("large"))[-1]
    assert isinstance(failed, JobFailed)
    assert failed.reason == "hostUnfit"
    assert (
        f"GiB are needed at {disk / 'large'}, and 0.6 are free, of which running jobs will fill 0.4" in failed.message
    )
    assert isinstance((await fleet.events("small"))[-1], JobCompleted)


async def test_caches_make_room_for_a_job(fleet: Fleet, host: Host, small_disk: Callable[[Path, int], Path]) -> None:
    """The one that was used longest ago is enough."""
    host.describe(GPUS[0])
    fleet.host = host.variables
    state = small_disk(fleet.folder / "small", 220 * MIB)
    entries = [state / "caches" / "entries" / "aa" / f"aa{number}.safetensors" for number in (1, 2)]
    entries[0].parent.mkdir(parents=True)
    for age, entry in enumerate(entries):
        entry.write_bytes(bytes(60 * MIB))
        os.utime(entry, (time.time() - 600 + age, time.time() - 600 + age))
    await fleet.start(state_dir=str(state))

    await fleet.submit("portrait")

    assert isinstance((await fleet.events("portrait"))[-1], JobCompleted)
    assert [entry.exists() for entry in entries] == [False, True]


def age(*paths: Path) -> None:
    """Make folders look as if nothing had changed in them for a month."""
    when = time.time() - 30 * DAY
    for path in paths:
        for each in (*path.rglob("*"), path):
            os.utime(each, (when, when))


async def test_only_what_nobody_needs_is_removed_by_a_running_daemon(fleet: Fleet) -> None:
    """However old the rest looks: a run, its checkpoints, and what a job that was requeued resumes from."""
    devices = [GPU_24, GPU_24]
    first = await fleet.start(mode="steady", gpus=devices)
    for number, job in enumerate(("gone", "back")):
        await fleet.submit(job, max_train_steps=200, max_attempts=1)
        await fleet.until(job, JobCheckpoint)
        os.killpg(first.trainers[number], signal.SIGKILL)
        assert isinstance((await fleet.events(job))[-1], JobFailed)
        await first.until_logged("job_ended", number + 1)
    await fleet.api.requeue("back")
    await fleet.submit("running", max_train_steps=200)
    await fleet.until("running", JobCheckpoint)
    trainers = [entry["pid"] for entry in await first.until_logged("trainer_started", 4)][2:]
    for trainer in trainers:
        os.killpg(trainer, signal.SIGSTOP)
    first.kill()
    state, models = fleet.folder / "state-w1", fleet.folder / "models"
    torn, waited = state / "runs" / "torn.1", state / "standby" / "GPU-9" / "diffusers"
    for folder in (torn, waited):
        folder.mkdir(parents=True)
    for name in ("run.json", "spec.json"):
        (torn / name).write_text("{torn")
    entry = state / "caches" / "entries" / "aa" / "aa1.safetensors"
    entry.parent.mkdir(parents=True)
    entry.touch()
    stay = [
        *(state / "runs" / name for name in ("back.2", "running.1")),
        *(models / name for name in (".back.back.1/checkpoint-5", ".back.back.2", ".running.running.1/checkpoint-5")),
    ]
    age(state, models)

    second = await fleet.start(mode="steady", gpus=devices)
    await second.until_logged("cleaned", 4)

    assert [path for path in (torn, waited, models / ".gone.gone.1", entry) if path.exists()] == []
    assert [path for path in stay if not path.exists()] == []
    for trainer in trainers:
        os.killpg(trainer, signal.SIGCONT)
    await second.until_logged("job_ended", 2)
    events = [event for _, event in await fleet.log()]
    resumed = [event.resume_step for event in events if isinstance(event, JobClaimed) and event.attempt == 2]
    assert {event.job_id for event in events if isinstance(event, JobCompleted)} == {"back", "running"}
    assert [step >= 5 for step in resumed] == [True]
