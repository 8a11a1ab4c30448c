"""The units under real systemd: a Debian in a container, the broker on the host's loopback, a trainer that is fake."""

import asyncio
import itertools
import re
import time
from typing import Any

import pytest
from tests.support.unit_host import LONG, PROGRAM, UNIT, Host

from training_schemas.events import JobProgress, JobReleased

# Of the first test, which may have to fetch a Debian before.
pytestmark = [pytest.mark.broker, pytest.mark.systemd, pytest.mark.timeout(900)]

WATCHDOG = "/etc/systemd/system/training-worker.service.d/watchdog.conf"


async def test_installed_and_started_it_trains_a_job(host: Host) -> None:
    """It starts as its own user, says what it does, and the result belongs to it."""
    host.machine.run("systemctl", "enable", UNIT)
    host.start()

    assert host.shown("ActiveState") == "active"
    assert host.shown("User") == "training-worker"
    await host.until("StatusText", lambda text: text == "connected; no job on 1 GPU(s)")
    await host.train("portrait", 60)
    await host.until("StatusText", lambda text: text == "connected; training portrait on SIMULATED-0")
    assert (await host.completed("portrait")).steps == 60
    assert host.machine.run("stat", "--format=%U %G %a", "/models/portrait").split()[:2] == ["training-worker"] * 2
    host.machine.run("systemctl", "disable", UNIT)


async def test_it_is_ready_without_a_broker(host: Host) -> None:
    """A broker that is away keeps no unit from starting; the status says so."""
    host.machine.write("/etc/training-worker/amqp-url", "amqp://guest:guest@127.0.0.1:9/\n", 0o600)

    host.start()

    assert host.shown("ActiveState") == "active"
    assert host.shown("StatusText") == "not connected to the broker; no job on 1 GPU(s)"


async def test_training_goes_on_while_it_is_reloaded(host: Host) -> None:
    """The same process executes itself anew, the same trainer ends the job. The command returns when that is done."""
    host.start()
    trainer, daemon = await host.train("portrait", LONG // 2), host.shown("MainPID")

    # Whether systemctl waits is decided within milliseconds: more than once.
    for _ in range(3):
        host.machine.run("systemctl", "reload", UNIT)
        assert host.shown("StatusText") != "restarting"
        assert host.shown("ActiveState") == "active"
        await host.until("StatusText", lambda text: text.startswith("connected; training portrait"))

    assert (host.shown("MainPID"), host.shown("NRestarts"), host.shown("ActiveState")) == (daemon, "0", "active")
    assert host.machine.trainers() == [trainer]
    assert (await host.completed("portrait")).attempt == 1


@pytest.mark.parametrize(
    "command",
    [
        ["systemctl", "reload", "--no-block", UNIT],
        # Nothing but RELOADING=1 tells systemd of this one.
        ["systemctl", "kill", "--kill-who=main", "--signal=HUP", UNIT],
    ],
    ids=["reload", "signal"],
)
async def test_it_is_reloading_until_the_next_program_is_ready(host: Host, command: list[str]) -> None:
    """Then it is active again, as the same process, and training has gone on meanwhile."""
    host.start()
    trainer, daemon = await host.train("portrait", LONG), host.shown("MainPID")

    seen = [dict(line.split("=", 1) for line in state.split("\t")) for state in host.watch(*command)]

    assert {state["MainPID"] for state in seen} == {daemon}
    assert [state["ActiveState"] for state in seen if state["StatusText"] == "restarting"] == ["reloading"]
    # Once, and never anything else.
    changes = [state for state, _ in itertools.groupby(state["ActiveState"] for state in seen)]
    assert changes in (["active", "reloading", "active"], ["reloading", "active"])
    assert host.machine.trainers() == [trainer]
    done = await host.completed("portrait")
    assert (done.attempt, done.steps) == (1, LONG)


async def test_a_reload_with_wrong_settings_changes_nothing(host: Host) -> None:
    """It fails, the journal has the reason, and the daemon goes on with what it had."""
    host.start()
    trainer, daemon = await host.train("portrait", LONG // 3), host.shown("MainPID")
    host.configure(lease="soon")

    host.machine.run("systemctl", "reload", UNIT, status=1)

    assert (host.shown("MainPID"), host.shown("NRestarts"), host.shown("ActiveState")) == (daemon, "0", "active")
    assert "at `$.lease`" in host.machine.run("journalctl", "--no-pager", "--lines=20", f"--unit={UNIT}")
    assert host.machine.trainers() == [trainer]
    assert (await host.completed("portrait")).attempt == 1


async def test_a_daemon_that_is_killed_comes_back_to_its_trainer(host: Host) -> None:
    """It is started anew, and the first attempt goes on."""
    host.start()
    trainer = await host.train("portrait", LONG // 3)

    host.machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", UNIT)
    await host.until("NRestarts", lambda times: times == "1")

    assert host.machine.trainers() == [trainer]
    await host.until("StatusText", lambda text: text.startswith("connected; training portrait"))
    assert (await host.completed("portrait")).attempt == 1


async def test_a_stop_gives_the_job_back(host: Host) -> None:
    """With a checkpoint, within the stop time, and nothing runs on."""
    host.start()
    await host.train("portrait", LONG)

    began = time.monotonic()
    host.machine.run("systemctl", "stop", UNIT)

    assert time.monotonic() - began < 30
    assert (host.shown("ActiveState"), host.shown("Result")) == ("inactive", "success")
    assert host.machine.trainers() == []
    released = await host.fleet.until("portrait", JobReleased)
    assert isinstance(released, JobReleased)
    assert released.step is not None
    # The next daemon goes on from there.
    host.start()
    await host.fleet.until("portrait", JobProgress, count=5)
    await host.fleet.api.cancel("portrait")


async def test_a_hung_daemon_is_started_anew(host: Host) -> None:
    """The watchdog bites, not the trainer."""
    host.machine.write(WATCHDOG, "[Service]\nWatchdogSec=5\n")
    host.machine.run("systemctl", "daemon-reload")
    try:
        host.start()
        trainer = await host.train("portrait", LONG // 2)
        await asyncio.sleep(6)
        assert host.shown("NRestarts") == "0"

        host.machine.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", UNIT)
        await host.until("NRestarts", lambda times: times == "1")

        assert host.machine.trainers() == [trainer]
        assert "Watchdog timeout" in host.machine.run("journalctl", "--no-pager", "--lines=30", f"--unit={UNIT}")
        assert (await host.completed("portrait")).attempt == 1
    finally:
        host.machine.run("rm", WATCHDOG)
        host.machine.run("systemctl", "daemon-reload")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lease": "soon"}, "cannot read settings: Expected `float`, got `str` - at `$.lease`"),
        ({"gpus": [], "only_gpus": []}, "cannot start: NVML shows no GPU, and the settings list none under `gpus`"),
    ],
)
async def test_wrong_settings_are_said_once(host: Host, changes: dict[str, Any], words: str) -> None:
    """The status has the reason; nothing is started again and again."""
    host.configure(**changes)

    host.machine.run("systemctl", "start", UNIT, status=1)
    await asyncio.sleep(5)

    assert (host.shown("ActiveState"), host.shown("NRestarts")) == ("failed", "0")
    assert (host.shown("Result"), host.shown("ExecMainStatus")) == ("exit-code", "78")
    assert host.shown("StatusText") == words


async def test_without_the_credential_nothing_is_tried_again(host: Host) -> None:
    """Its absence does not mend itself either."""
    host.machine.run("rm", "/etc/training-worker/amqp-url")

    host.machine.run("systemctl", "start", UNIT, status=1)
    await asyncio.sleep(5)

    assert (host.shown("ActiveState"), host.shown("NRestarts")) == ("failed", "0")


async def test_one_daemon_for_each_card(host: Host) -> None:
    """Each has its card, its name, its state; and all of it can be taken back, but not while it runs."""
    machine = host.machine
    machine.run(PROGRAM, "install", "--per-gpu")
    units = ["training-worker@0", "training-worker@SIMULATED-1"]
    try:
        machine.run("systemctl", "enable", "--now", *units)
        for unit in units:
            await host.until("StatusText", lambda text: text == "connected; no job on 1 GPU(s)", unit)
        for job in ("portrait", "second"):
            await host.fleet.submit(
                job, dataset_path="/datasets/set", output_path=f"/models/{job}", max_train_steps=200
            )
        for unit, card in zip(units, ("SIMULATED-0", "SIMULATED-1"), strict=True):
            await host.until("StatusText", re.compile(f"connected; training .* on {card}$").match, unit)
        for job in ("portrait", "second"):
            await host.completed(job)

        refused = machine.run(PROGRAM, "install", "--undo", status=78)
        assert "systemctl disable --now training-worker@0.service training-worker@SIMULATED-1.service" in refused
    finally:
        machine.run("systemctl", "disable", "--now", *units)
    machine.run(PROGRAM, "install", "--undo")
    for name in ("training-worker.service", "training-worker@.service"):
        assert not (machine.folder / "etc/systemd/system" / name).exists()
    assert (machine.folder / "var/lib/training-worker/0/lock").exists()
    # What follows a test asks about the unit.
    machine.run(PROGRAM, "install")
