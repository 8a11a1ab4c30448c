"""The units under real systemd: a Debian in a container, the broker on the host's loopback, a trainer that is fake."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_asyncio
from tests.support.fleet import CARD_24, TYPES, Fleet, to_toml
from tests.support.nspawn import TRAINER, Machine, NoMachineError, booted, note

from training_schemas.events import JobCompleted, JobProgress, JobReleased

pytestmark = [pytest.mark.broker, pytest.mark.systemd]

UNIT = "training-worker.service"
PROGRAM = "/opt/training-worker/bin/training-worker"
CONFIG = "/etc/training-worker/worker.toml"
WATCHDOG = "/etc/systemd/system/training-worker.service.d/watchdog.conf"
PATIENCE = 60.0
# Of a trainer that is to outlive what is done to its daemon: half a minute at 20 steps a second.
LONG = 600


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[Machine]:
    """A booted Debian with the project in a virtual environment, and nothing else done yet."""
    folder = tmp_path_factory.mktemp("machine")
    try:
        with booted(folder / "root") as machine:
            machine.run("mkdir", "-p", "/datasets/set", "/models", "/weights/base")
            yield machine
            machine.run("journalctl", "--no-pager", "--unit=training-worker*", status=None)
    except NoMachineError as error:
        missing(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Host:
    """The unit on its machine, and a client of its queues."""

    def __init__(self, machine: Machine, fleet: Fleet) -> None:
        self.machine = machine
        self.fleet = fleet

    def configure(self, **changes: Any) -> None:
        """Write the settings of this test, and the broker's address as the credential."""
        settings = {
            "prefix": self.fleet.names.prefix,
            "dataset_roots": ["/datasets"],
            "output_roots": ["/models"],
            "gpus": [CARD_24, CARD_24],
            "only_gpus": ["0"],
            "models": {"black-forest-labs/FLUX.1-dev": "/weights/base"},
            "engines": {
                "diffusers": {"command": ["/usr/bin/python3", "-S", TRAINER, "steady"], "training_types": TYPES}
            },
            "lease": 10,
            "grace": 1,
            "retry_delays": [1],
            "stop_grace": 5,
        } | changes
        self.machine.write(CONFIG, "\n".join(f"{key} = {to_toml(value)}" for key, value in settings.items()))
        self.machine.write("/etc/training-worker/amqp-url", f"{self.fleet.url}\n", 0o600)

    def start(self, unit: str = UNIT) -> None:
        """Start it: systemctl returns once the daemon has said READY=1."""
        self.machine.run("systemctl", "start", unit)

    def shown(self, name: str, unit: str = UNIT) -> str:
        """A property of the unit."""
        return self.machine.shown(unit, name)

    async def until(self, name: str, test: Callable[[str], bool], unit: str = UNIT) -> str:
        """Wait until a property is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while not test(value := self.shown(name, unit)):
            assert time.monotonic() < deadline, f"{name} is {value}"
            await asyncio.sleep(0.5)
        return value

    async def train(self, job_id: str, steps: int) -> int:
        """Have a job trained, and wait until it is; the trainer's process id."""
        await self.fleet.submit(
            job_id, dataset_path="/datasets/set", output_path=f"/models/{job_id}", max_train_steps=steps
        )
        await self.fleet.until(job_id, JobProgress, count=3)
        (trainer,) = self.machine.trainers()
        return trainer

    async def completed(self, job_id: str) -> JobCompleted:
        """How a job ended, which was trained."""
        last = (await self.fleet.events(job_id))[-1]
        assert isinstance(last, JobCompleted)
        return last


@pytest_asyncio.fixture
async def host(
    machine: Machine, tmp_path: Path, broker_url: str, prefix: str, request: pytest.FixtureRequest
) -> AsyncIterator[Host]:
    """The unit, installed and configured for this test, and not started."""
    note(f"\n=== {request.node.name}")
    machine.run("sh", "-c", "rm -rf /models/* /var/lib/training-worker")
    machine.run(PROGRAM, "install")
    machine.run("chown", "training-worker:", "/models")
    host = Host(machine, Fleet(tmp_path, broker_url, prefix))
    host.configure()
    yield host
    machine.run("systemctl", "status", "--no-pager", UNIT, status=None)
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "reset-failed", UNIT, status=None)
    assert machine.trainers() == []


async def test_installed_and_started_it_trains_a_job(host: Host) -> None:
    """It starts as its own user, says what it does, and the result belongs to it."""
    host.machine.run("systemctl", "enable", UNIT)
    host.start()

    assert host.shown("ActiveState") == "active"
    assert host.shown("User") == "training-worker"
    await host.until("StatusText", lambda text: text == "connected; no job on 1 card(s)")
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
    assert host.shown("StatusText") == "not connected to the broker; no job on 1 card(s)"


async def test_training_goes_on_while_it_is_reloaded(host: Host) -> None:
    """The same process executes itself anew, the same trainer ends the job."""
    host.start()
    trainer, daemon = await host.train("portrait", LONG // 3), host.shown("MainPID")

    host.machine.run("systemctl", "reload", UNIT)
    await host.until("StatusText", lambda text: text.startswith("connected; training portrait"))

    assert (host.shown("MainPID"), host.shown("NRestarts"), host.shown("ActiveState")) == (daemon, "0", "active")
    assert host.machine.trainers() == [trainer]
    assert (await host.completed("portrait")).attempt == 1


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
            await host.until("StatusText", lambda text: text == "connected; no job on 1 card(s)", unit)
        await host.train("portrait", 60)
        await host.completed("portrait")

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
