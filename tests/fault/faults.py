"""The faults: each is injected into real daemons, a real broker and real trainer processes.

A fault is a function that plays one round on a `Scene`. When it returns, nothing of the fault is in force any more, and
the job must come to its end by itself.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from tests.fault.scene import JOB, PHASES, STEPS, Scene
from tests.support.cluster import Cluster
from tests.support.fleet import GPU_8

from training_schemas.events import JobCancelled, JobClaimed, JobCompleted, JobEvent, JobFailed, JobProgress, JobQueued
from training_worker.queue.job_message import QueuedJob
from training_worker.testing.local_broker import PrivateBroker

STEPPED = str(Path(__file__).with_name("stepped_daemon.py"))

Play = Callable[[Scene], Awaitable[None]]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: how it is played, how the job must end, and what must hold besides.

    ``stage`` is the fixture that it is played on, where the shared broker will not do. ``isolates`` means that an owner
    is cut off from the broker for longer than its lease. ``attempts`` and ``twice`` are the most attempts and repeated
    steps that it may cost.
    """

    play: Play
    ends: tuple[type[JobEvent], ...] = (JobCompleted,)
    stage: str = "broker_url"
    isolates: bool = False
    attempts: int = 1
    twice: int = 0


FAULTS: dict[str, Fault] = {}


def fault(**fields: Any) -> Callable[[Play], Play]:
    """Register a function as a fault, under its name."""

    def register(play: Play) -> Play:
        FAULTS[play.__name__] = Fault(play=play, **fields)
        return play

    return register


@fault()
async def daemon_killed(scene: Scene) -> None:
    """Kill -9 of the daemon; it is started again, as systemd does, and training never pauses."""
    daemon = await scene.host("w1")
    await scene.submit()
    await scene.some_step()
    daemon.kill()
    await scene.some_time()
    await scene.host("w1")


@fault()
async def daemon_killed_until_the_trainer_ended(scene: Scene) -> None:
    """The trainer ends while no daemon is there: its run is finalized from what it left."""
    daemon = await scene.host("w1", lease=20)
    await scene.submit()
    await scene.some_step()
    daemon.kill()
    await scene.until(lambda trace: trace.what == "end")
    await scene.some_time()
    await scene.host("w1", lease=20)


@fault()
async def daemon_killed_again_and_again(scene: Scene) -> None:
    """Each daemon lives for a moment; together they publish every record once."""
    for _ in range(4):
        daemon = await scene.host("w1", lease=20)
        if not scene.run_folders("w1"):
            await scene.submit()
            await scene.until_step(1)
        await scene.some_time()
        daemon.kill()
    await scene.host("w1", lease=20)


@fault(attempts=2, twice=6)
async def trainer_killed(scene: Scene) -> None:
    """Kill -9 of the trainer: the job resumes from its last checkpoint."""
    await scene.host("w1")
    await scene.submit()
    await scene.some_step()
    scene.kill_trainer("w1")


@fault(attempts=2, twice=6)
async def both_killed(scene: Scene) -> None:
    """The whole host is gone: another one takes over, and resumes from the last checkpoint."""
    daemon = await scene.host("w1")
    await scene.submit()
    await scene.some_step()
    daemon.kill()
    scene.kill_trainer("w1")
    await scene.host("w2")


@fault(attempts=2, twice=6)
async def both_killed_and_the_host_comes_back(scene: Scene) -> None:
    """The host restarts: it finds a run folder without its trainer, and reports that."""
    daemon = await scene.host("w1")
    await scene.submit()
    await scene.some_step()
    daemon.kill()
    scene.kill_trainer("w1")
    await scene.host("w1")


@fault(attempts=2, twice=6)
async def process_id_reused(scene: Scene) -> None:
    """The trainer's process id belongs to a stranger by now, who is left alone."""
    daemon = await scene.host("w1")
    await scene.submit()
    await scene.some_step()
    daemon.kill()
    scene.kill_trainer("w1")
    stranger = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)  # noqa: ASYNC220
    try:
        (folder,) = scene.run_folders("w1")
        boot, stat = (folder / "process").read_text().splitlines()
        (folder / "process").write_text(f"{boot}\n{stranger.pid} {stat.partition(' ')[2]}\n")
        await scene.host("w1")
        await scene.fleet.until(JOB, JobClaimed, count=2)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@fault(attempts=2, twice=60, isolates=True)
async def power_lost_and_the_host_comes_back(scene: Scene) -> None:
    """No FIN: the host stands still and its packets are gone. Another one takes over; then the first one wakes up."""
    proxy = await scene.proxy()
    first = await scene.host("w1", amqp_url=f"{proxy.url}?heartbeat=1")
    await scene.submit()
    await scene.some_step(10)
    trainer = scene.trainer("w1")
    proxy.drop()
    os.kill(first.process.pid, signal.SIGSTOP)
    os.killpg(trainer.pid, signal.SIGSTOP)
    second = await scene.host("w2")
    await second.until_logged("claimed")
    proxy.pass_on()
    os.killpg(trainer.pid, signal.SIGCONT)
    os.kill(first.process.pid, signal.SIGCONT)
    await first.until_logged("superseded")


@fault()
async def connection_cut(scene: Scene) -> None:
    """The connection ends, and is there again at once."""
    proxy = await scene.proxy()
    await scene.host("w1", amqp_url=proxy.url)
    await scene.submit()
    await scene.some_step()
    proxy.cut()


@fault(attempts=2)
async def connection_cut_after_some_frame(scene: Scene) -> None:
    """The connection ends somewhere in a short life: while the job is admitted, claimed, reported or given up."""
    proxy = await scene.proxy()
    await scene.host("w1", mode="brisk", amqp_url=proxy.url)
    proxy.cut_after(scene.rng.randint(1, 190))
    await scene.submit(max_train_steps=5)


@fault()
async def network_silent_for_less_than_the_lease(scene: Scene) -> None:
    """Nothing passes for a while; then everything that waited does."""
    proxy = await scene.proxy()
    await scene.host("w1", amqp_url=proxy.url, lease=20)
    await scene.submit()
    await scene.some_step()
    proxy.hold()
    await scene.some_time(3)
    proxy.resume()


@fault()
async def network_silent_for_thirty_seconds(scene: Scene) -> None:
    """Longer than the heartbeat, shorter than the lease: the owner trains on, and publishes afterwards."""
    proxy = await scene.proxy()
    await scene.host("w1", amqp_url=proxy.url, lease=90)
    await scene.submit(max_train_steps=700)
    await scene.some_step()
    proxy.hold()
    await asyncio.sleep(30)
    proxy.resume()


@fault(attempts=2, twice=60, isolates=True)
async def network_silent_for_longer_than_the_lease(scene: Scene) -> None:
    """The broker gives the owner up by its heartbeat; another one takes over, and the first one stops its trainer."""
    proxy = await scene.proxy()
    first = await scene.host("w1", amqp_url=f"{proxy.url}?heartbeat=1")
    await scene.submit()
    await scene.some_step(10)
    proxy.drop()
    second = await scene.host("w2")
    await second.until_logged("claimed")
    proxy.pass_on()
    await first.until_logged("superseded")


@fault()
async def consumer_cancelled_by_the_broker(scene: Scene) -> None:
    """Somebody deletes the job's lease queue: the owner declares it again."""
    await scene.host("w1")
    await scene.submit()
    await scene.some_step()
    async with scene.fleet.channel() as channel:
        await channel.queue_delete(scene.fleet.names.lease(JOB))


@fault()
async def message_delivered_to_two_hosts(scene: Scene) -> None:
    """Two copies wait, and two hosts come: one trains, the other hands its copy over."""
    await scene.host("w0", gpus=[GPU_8])
    queued = QueuedJob.submitted(msgspec.json.encode(await scene.submit()), time.time())
    await scene.fleet.until(JOB, JobQueued)
    async with scene.fleet.channel() as channel:
        jobs = await channel.get_exchange(scene.fleet.names.jobs, ensure=False)
        await jobs.publish(queued.message(), queued.tier_key)
    await asyncio.gather(scene.host("w1"), scene.host("w2"))


@fault()
async def job_submitted_twice(scene: Scene) -> None:
    """While it waits or runs, the same job is submitted again."""
    await scene.host("w1")
    await scene.submit()
    await scene.some_time()
    await scene.submit()


@fault(attempts=2, twice=60)
async def trainer_ignores_sigterm(scene: Scene) -> None:
    """It is killed after its grace, and the job goes back."""
    daemon = await scene.host("w1", mode="deaf", stop_grace=1)
    await scene.submit()
    await scene.fleet.until(JOB, JobClaimed)
    await scene.some_time()
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0
    await scene.host("w1")


@fault()
async def grandchild_holds_the_output(scene: Scene) -> None:
    """What the trainer leaves behind does not hold the job up."""
    await scene.host("w1", mode="grandchild")
    await scene.submit()


@fault(attempts=2, twice=3, ends=(JobFailed,))
async def trainer_dies_every_time(scene: Scene) -> None:
    """A job that kills its trainer is given up after its last attempt, and lies in the dead queue."""
    await scene.host("w1", mode="killer")
    await scene.submit(max_attempts=2)
    await scene.fleet.events(JOB)
    assert (await scene.fleet.dead()).message_id == JOB


@fault(attempts=3, ends=(JobFailed,))
async def disk_full(scene: Scene) -> None:
    """Tried again elsewhere, as often as the job allows; then given up, with what is wrong."""
    disk = scene.small_disk(300_000)
    await scene.host("w1", mode="filler", output_roots=[str(disk)])
    await scene.submit(output_path=str(disk / JOB), max_attempts=2)


@fault(ends=(JobFailed,))
async def loss_not_finite(scene: Scene) -> None:
    """The trainer is stopped at once, and the job given up."""
    await scene.host("w1", mode="diverge")
    await scene.submit()


@fault(attempts=2, twice=1, ends=(JobFailed,))
async def trainer_stalled(scene: Scene) -> None:
    """A trainer that reports nothing new is stopped, and the job tried again."""
    await scene.host("w1", mode="stuck", stall_training=1)
    await scene.submit(max_attempts=2)


@fault(stage="private_broker")
async def broker_away_for_less_than_the_lease(scene: Scene) -> None:
    """The broker is killed and comes back: the owner re-attaches to its job."""
    await scene.host("w1", lease=60)
    await scene.submit(max_train_steps=100)
    await _restart_broker(scene)


@fault(stage="private_broker")
async def broker_away_for_longer_than_the_lease(scene: Scene) -> None:
    """The lease has run out by the time that the broker is back; the grace leaves the owner its job."""
    await asyncio.gather(*(scene.host(name, grace=20) for name in ("w1", "w2")))
    await scene.submit(max_train_steps=100)
    await _restart_broker(scene)


async def _restart_broker(scene: Scene) -> None:
    assert isinstance(scene.stage, PrivateBroker)
    # Queues that are younger than 2 s may not survive the kill: docs/protocol.md, what is not promised.
    await scene.until_step(50)
    await asyncio.to_thread(scene.stage.restart)


@fault(stage="consumer_timeout_broker")
async def channel_closed_by_the_consumer_timeout(scene: Scene) -> None:
    """The lease copy is held for longer than the broker likes: it closes the channel, and the owner rejoins."""
    daemon = await scene.host("w1", lease=60)
    await scene.submit(max_train_steps=250)
    await daemon.until_logged("rejoined")


@fault(stage="cluster")
async def leader_lost(scene: Scene) -> None:
    """The node that leads the job's queues dies; the owner continues with another one."""
    cluster = scene.stage
    assert isinstance(cluster, Cluster)
    proxy = await scene.proxy()
    await scene.host("w1", amqp_url=proxy.url, lease=60)
    await scene.submit(max_train_steps=100)
    await scene.until_step(50)
    leader = await asyncio.to_thread(cluster.leader, scene.fleet.names.lease(JOB))
    survivor = cluster.nodes[(leader + 1) % 3]
    scene.fleet.move(survivor.url)
    proxy.move(survivor.url)
    await asyncio.to_thread(cluster.kill, leader)
    await scene.fleet.events(JOB)
    await asyncio.to_thread(cluster.start, leader)


@fault(attempts=2)
async def out_of_memory(scene: Scene) -> None:
    """The same GPU tries again with a smaller micro-batch."""
    await scene.host("w1", mode="hog")
    await scene.submit(batch_size=2)


@fault(attempts=2, twice=1)
async def signalled_twice(scene: Scene) -> None:
    """A second signal ends the daemon without waiting for a checkpoint; the job goes back."""
    daemon = await scene.host("w1", mode="deaf", stop_grace=50)
    await scene.submit()
    await scene.fleet.until(JOB, JobProgress)
    daemon.signal(signal.SIGTERM)
    await daemon.until_logged("leaving")
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 1
    await scene.host("w1")


async def _signalled_in(scene: Scene, phase: str, number: signal.Signals) -> Any:
    daemon = await scene.host("w1", lease=10)
    await scene.submit()
    await scene.until_phase(phase)
    daemon.signal(number)
    return daemon


def _in_each_phase() -> None:
    for phase in PHASES:

        async def sigterm(scene: Scene, phase: str = phase) -> None:
            daemon = await _signalled_in(scene, phase, signal.SIGTERM)
            assert await daemon.ended() == 0
            await scene.host("w1")

        async def sighup(scene: Scene, phase: str = phase) -> None:
            daemon = await _signalled_in(scene, phase, signal.SIGHUP)
            await daemon.until_logged("broker_connected", count=2)

        async def cancel(scene: Scene, phase: str = phase) -> None:
            # A cancellation needs a while: on a busy machine, the trainer would have ended before it came.
            await scene.host("w1", mode="steady" if phase == "training" else f"dwell:{phase}")
            await scene.submit()
            await scene.until_phase(phase)
            await scene.fleet.api.cancel(JOB)

        FAULTS[f"sigterm_in_{phase}"] = Fault(play=sigterm, attempts=2)
        FAULTS[f"sighup_in_{phase}"] = Fault(play=sighup)
        FAULTS[f"cancelled_in_{phase}"] = Fault(play=cancel, ends=(JobCancelled,))


_in_each_phase()


@fault(ends=(JobCancelled,))
async def cancelled_while_queued(scene: Scene) -> None:
    """Nobody is there yet: whoever consumes the job honours the cancellation."""
    daemon = await scene.host("w1")
    await scene.fleet.submit("before", max_train_steps=STEPS)
    await scene.fleet.until("before", JobClaimed)
    await scene.submit()
    await scene.fleet.until(JOB, JobQueued)
    await scene.fleet.api.cancel(JOB)
    await daemon.until_logged("job_ended")


# Every step of a claim and of a finish, as the functions that do them.
STEPS_OF_LIFE = (
    "ownership.claim.Claim.declare_lease",
    "ownership.claim.Claim.acquire_lock",
    "ownership.claim.Claim.open_inbox",
    "ownership.claim.Claim.read_ledger",
    "ownership.claim.Claim.announce",
    "ownership.claim.Claim.open_lease",
    "ownership.claim.Claim.lease_copy",
    "ownership.claim.Claim.acknowledge",
    "attempts.job_runner.JobRunner._make_run",
    "runs.run.Run.start",
    "attempts.job_runner.promote",
    "attempts.completion.Completion.decide",
    "ownership.ownership.Ownership.report",
    "ownership.ownership.Ownership.leave",
    "ownership.lease.Lease.delete",
    "ownership.lock.Lock.release",
    "runs.run_directory.RunDirectory.remove",
)


def _at_each_step() -> None:
    for step in STEPS_OF_LIFE:
        for when in ("before", "after"):

            async def killed(scene: Scene, step: str = step, when: str = when) -> None:
                program = [STEPPED, step, when]
                daemon = await scene.host("w1", program=program)
                await scene.submit(max_train_steps=4)
                await asyncio.to_thread(daemon.process.wait, 60)
                await scene.some_time()
                await scene.host("w1" if scene.rng.random() < 0.5 else "w2")

            FAULTS[f"killed_{when}_{step.rpartition('.')[2].strip('_')}_of_{step.split('.')[-2].lower()}"] = Fault(
                play=killed, attempts=2, twice=4
            )


_at_each_step()


# Every step of handing a run over to a trainer that waits.
STEPS_OF_STANDBY = (
    "runs.standby.Standby.hand_over",
    "runs.standby.WaitingTrainer._identify",
    "runs.standby.WaitingTrainer._assign",
)


def _at_each_step_of_standby() -> None:
    for step in STEPS_OF_STANDBY:
        for when in ("before", "after"):

            async def killed(scene: Scene, step: str = step, when: str = when) -> None:
                daemon = await scene.host("w1", program=[STEPPED, step, when], standby=True)
                await daemon.until_logged("standby_ready")
                await scene.submit(max_train_steps=4)
                await asyncio.to_thread(daemon.process.wait, 60)
                await scene.some_time()
                await scene.host("w1" if scene.rng.random() < 0.5 else "w2", standby=True)

            FAULTS[f"killed_{when}_{step.rpartition('.')[2].strip('_')}_of_{step.split('.')[-2].lower()}"] = Fault(
                play=killed, attempts=2, twice=4
            )


_at_each_step_of_standby()
