"""A trainer that waits accepts one run, or is gone: real shells, and an end at each point of handing over."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from tests.support import runs
from tests.support.owning import TIMEOUT
from tests.support.processes import is_gone

from training_schemas.jobs import EngineName, TrainingType
from training_worker.runs import standby
from training_worker.runs.child_process import Exit
from training_worker.runs.process_identity import ProcessIdentity
from training_worker.runs.run import Run
from training_worker.runs.standby import Standby
from training_worker.settings import EngineSettings, Settings

ENGINE = EngineName.DIFFUSERS
READY = "echo ready >&0; "
READ = "read -r folder || exit 0; "
ACCEPT = 'exec 2>>"$folder/stderr.log" >>"$folder/stdout.log" </dev/null; '
TRAIN = "echo trained; exit 3"
LONG = "exec sleep 600"


def engine(script: str) -> EngineSettings:
    """An engine whose trainer is a shell's script."""
    return EngineSettings(command=["/bin/sh", "-c", script], training_types=[TrainingType.FLUX_LORA], standby=True)


class Slot:
    """A GPU with trainers that wait, as its slot has them."""

    def __init__(self, folder: Path, script: str, **others: EngineSettings) -> None:
        engines = {ENGINE: engine(script)} | {EngineName(name): other for name, other in others.items()}
        self.standby = Standby(runs.GPU, Settings(state_dir=folder, engines=engines))
        self.folder = folder / "standby" / runs.GPU.uuid
        self.log: list[Any] = []

    async def until_logged(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for an event about the trainers."""
        async with asyncio.timeout(TIMEOUT):
            while len(found := [entry for entry in self.log if entry["event"] == event]) < count:  # noqa: ASYNC110 - a list
                await asyncio.sleep(0.01)
        return found

    def identity(self, name: EngineName = ENGINE) -> ProcessIdentity:
        """Who waits."""
        identity = ProcessIdentity.read(self.folder / name / "process")
        assert identity is not None
        return identity


class Stage(contextlib.AsyncExitStack):
    """Makes slots, and stops what still waits there in the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def slot(self, script: str, **others: EngineSettings) -> Slot:
        """A slot whose events are kept."""
        slot = Slot(self.folder, script, **others)
        slot.log = self.enter_context(structlog.testing.capture_logs())
        self.push_async_callback(slot.standby.stop)
        return slot

    async def ready(self, script: str, **others: EngineSettings) -> Slot:
        """The same, with its trainers ready."""
        slot = self.slot(script, **others)
        slot.standby.prepare()
        await slot.until_logged("standby_ready", 1 + len(others))
        return slot


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Slots for one test."""
    async with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose trainer has not started."""
    return runs.make_run(tmp_path)


async def test_the_trainer_that_waits_is_the_one_that_trains(stage: Stage, run: Run) -> None:
    """It is known in the run folder as it was before, its output goes there, and its end is reported."""
    slot = await stage.ready(READY + READ + ACCEPT + TRAIN)
    waiting = slot.identity()

    child = await slot.standby.hand_over(ENGINE, run)

    assert child is not None
    assert (waiting, waiting.pid) == (run.identity, child.pid)
    assert await asyncio.wait_for(child.wait(), TIMEOUT) == Exit(status=3)
    assert run.folder.stdout.read_text() == "trained\n"
    assert [entry["event"] for entry in slot.log] == ["standby_ready"]
    assert list(slot.folder.iterdir()) == []


async def test_a_trainer_that_waits_has_the_slots_gpu_and_a_mark(stage: Stage, run: Run) -> None:
    """Nothing that a trainer started in the usual way has is missing, but for the run folder as an argument."""
    slot = await stage.ready(READY + READ + ACCEPT + 'echo "$0"; env')
    child = await slot.standby.hand_over(ENGINE, run)
    assert child is not None
    await asyncio.wait_for(child.wait(), TIMEOUT)

    output = run.folder.stdout.read_text().splitlines()

    assert output[0] == "--standby"
    assert run.identity is not None
    assert {f"CUDA_VISIBLE_DEVICES={runs.GPU.uuid}", run.identity.mark} <= set(output)


async def test_the_identity_is_in_the_run_folder_before_the_trainer_receives_it(stage: Stage, run: Run) -> None:
    """Else a daemon that dies in between would leave a trainer that nobody finds."""
    slot = await stage.ready(READY + READ + 'cp "$folder/process" "$folder/seen"; ' + ACCEPT + TRAIN)

    child = await slot.standby.hand_over(ENGINE, run)

    assert child is not None
    assert await asyncio.wait_for(child.wait(), TIMEOUT) == Exit(status=3)
    assert (run.folder.path / "seen").read_text() == run.folder.identity.read_text()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(READY + READ + "exit 5", id="it ends as it reads"),
        pytest.param(READY + READ + 'exec 2>>"$folder/stderr.log" </dev/null; kill -KILL $$', id="it is killed"),
        pytest.param(READY + READ + "exec </dev/null; " + LONG, id="it lets go without taking the run"),
        pytest.param(READY + "exec </dev/null; " + LONG, id="it does not listen"),
    ],
)
async def test_a_trainer_that_does_not_accept_its_run_is_ended(stage: Stage, run: Run, script: str) -> None:
    """The run is as it was: another trainer can be started for it, in the usual way."""
    slot = await stage.ready(script)
    waiting = slot.identity()

    assert await slot.standby.hand_over(ENGINE, run) is None

    assert is_gone(waiting.pid, TIMEOUT)
    assert (run.identity, run.has_begun) == (None, False)


async def test_a_trainer_that_takes_too_long_is_ended(stage: Stage, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It might hang; to start another one is a matter of seconds."""
    monkeypatch.setattr(standby, "TAKE_TIMEOUT", 0.1)
    slot = await stage.ready(READY + LONG)
    waiting = slot.identity()

    assert await slot.standby.hand_over(ENGINE, run) is None

    assert is_gone(waiting.pid, TIMEOUT)
    assert "TimeoutError" in (await slot.until_logged("standby_failed"))[0]["error"]
    assert (run.identity, run.has_begun) == (None, False)


async def test_a_trainer_that_ended_after_it_accepted_the_run_has_trained_it(stage: Stage, run: Run) -> None:
    """How it ended is for others to judge; a second trainer would be one too many."""
    slot = await stage.ready(READY + READ + ACCEPT + "kill -KILL $$")

    child = await slot.standby.hand_over(ENGINE, run)

    assert child is not None
    assert await asyncio.wait_for(child.wait(), TIMEOUT) == Exit(signal=signal.SIGKILL)


@pytest.mark.parametrize("text", ["", "echo loading >&0; "], ids=["silent", "another text"])
async def test_a_trainer_that_is_not_ready_is_not_waited_for(stage: Stage, run: Run, text: str) -> None:
    """It is ended, and delays the one that is started instead by nothing."""
    slot = stage.slot(text + "echo output; " + LONG)
    slot.standby.prepare()
    async with asyncio.timeout(TIMEOUT):
        while (slot.folder / ENGINE / "stdout.log").read_text() == "":  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.05)
    waiting = slot.identity()

    assert await slot.standby.hand_over(ENGINE, run) is None

    assert is_gone(waiting.pid, TIMEOUT)
    assert slot.log == []
    assert (run.identity, run.has_begun) == (None, False)


async def test_a_trainer_that_ends_while_it_waits_is_reported_and_not_started_again_at_once(
    stage: Stage, run: Run
) -> None:
    """One that cannot load its libraries would be started for ever; after a job, it is tried once more."""
    slot = stage.slot("echo 'no library' >&2; exit 1")
    slot.standby.prepare()
    (ended,) = await slot.until_logged("standby_ended")
    slot.standby.prepare()

    assert (ended["exit"], ended["output"]) == ("exit status 1", ["no library"])
    assert await slot.standby.hand_over(ENGINE, run) is None
    slot.standby.prepare()
    assert len(await slot.until_logged("standby_ended", 2)) == 2


async def test_a_program_that_is_missing_is_reported(stage: Stage, run: Run) -> None:
    """The slot keeps working; whoever starts a trainer for a job reports the same."""
    slot = stage.slot("")
    slot.standby._commands = {ENGINE: ["/no-such-folder/program"]}

    slot.standby.prepare()

    assert "no such program" in (await slot.until_logged("standby_failed"))[0]["error"]
    assert await slot.standby.hand_over(ENGINE, run) is None


async def test_no_trainer_waits_while_a_job_is_trained(stage: Stage, run: Run) -> None:
    """Those of other engines are ended, whether the requested one accepted the run or there was none."""
    slot = await stage.ready(READY + READ + ACCEPT + LONG, invoke=engine(READY + LONG))
    other = slot.identity(EngineName.INVOKE)

    child = await slot.standby.hand_over(ENGINE, run)

    assert is_gone(other.pid, TIMEOUT)
    assert child is not None
    assert not child.ended.is_set()
    await child.stop(0)


async def test_an_engine_that_is_not_set_to_has_nobody_waiting(stage: Stage, run: Run) -> None:
    """As it is by default."""
    slot = stage.slot("")
    cold = EngineSettings(command=["/bin/true"], training_types=[TrainingType.FLUX_LORA])
    slot.standby = Standby(runs.GPU, Settings(state_dir=stage.folder, engines={ENGINE: cold}))

    slot.standby.prepare()

    assert await slot.standby.hand_over(ENGINE, run) is None
    assert not slot.folder.exists()


async def test_a_trainer_that_is_stopped_ends_at_once_and_leaves_nothing(stage: Stage) -> None:
    """Though it ignores SIGTERM: it has nothing to save. No descriptor stays open either."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no folder of files
    slot = await stage.ready("trap '' TERM; " + READY + "while :; do sleep 0.01; done")
    waiting = slot.identity()

    await asyncio.wait_for(slot.standby.stop(), TIMEOUT)

    assert is_gone(waiting.pid, TIMEOUT)
    assert list(slot.folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


DAEMON = """
import asyncio, os, sys
from pathlib import Path
from tests.daemon.runs.test_standby import READ, READY, Stage

async def main():
    slot = await Stage(Path(sys.argv[1])).ready(READY + READ)
    print(slot.identity().pid, flush=True)
    if sys.argv[2] == "exec":
        os.execv("/bin/sleep", ["sleep", "600"])
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["kill", "exec"])
def test_a_trainer_that_waits_does_not_outlive_its_daemon(tmp_path: Path, how: str) -> None:
    """However that ends: killed, or by becoming another program."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    command = [sys.executable, "-c", DAEMON, str(tmp_path), how]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        waiting = json.loads(daemon.stdout.readline())
        if how == "kill":
            daemon.kill()

        assert is_gone(waiting, TIMEOUT)

        daemon.kill()
