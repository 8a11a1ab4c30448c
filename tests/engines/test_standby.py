"""The trainer on standby: a process that waits, and from its first word on trains like any other."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.engines.conftest import Train, WriteRun, read_records
from tests.engines.trainers import assert_same_adapter

from training_schemas.progress import DoneRecord
from training_schemas.spec import STDERR_FILE, STDOUT_FILE
from training_worker.engines.diffusers.standby import READY

pytestmark = pytest.mark.trainer

PROGRAM = "training_worker.engines.diffusers"
TIMEOUT = 120

# The program, but for its libraries.
LIGHT = f"import sys; from {PROGRAM} import __main__, standby; standby.RUNS = (); sys.exit(__main__.main())"


class Waiting:
    """A trainer that waits, with the daemon's end of its socket."""

    def __init__(self, process: "subprocess.Popen[str]", line: socket.socket) -> None:
        self.process = process
        self.line = line

    def until_ready(self) -> None:
        """Wait until it has loaded its libraries."""
        assert self.line.recv(100) == READY

    def hand_over(self, folder: Path) -> None:
        """Send it its run folder, and wait until it has taken the run or ended."""
        self.line.sendall(os.fsencode(folder) + b"\n")
        assert self.line.recv(1) == b""

    def end(self) -> tuple[int, str]:
        """How it ended, and what it wrote where the daemon's end saw it."""
        output, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, output + errors


@contextmanager
def waiting(*arguments: str) -> Iterator[Waiting]:
    """Start this Python with one end of a socket as its standard input."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        stdin=theirs.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with ours, process:
        theirs.close()
        try:
            yield Waiting(process, ours)
        finally:
            process.kill()


def test_a_trainer_that_waited_trains_the_weights_of_one_that_was_just_started(
    write_run: WriteRun, train: Train
) -> None:
    """With the same records and exit status; all of its output is in the run folder."""
    cold, warm = write_run("cold", validation_prompts=["a robot"]), write_run("warm", validation_prompts=["a robot"])
    train(cold)

    with waiting("-m", PROGRAM, "--standby") as trainer:
        trainer.until_ready()
        trainer.hand_over(warm)
        end = trainer.end()

    assert (0, "") == end
    assert [type(record) for record in read_records(cold)] == [type(record) for record in read_records(warm)]
    assert isinstance(read_records(warm)[-1], DoneRecord)
    assert ["", ""] == [(warm / name).read_text() for name in (STDOUT_FILE, STDERR_FILE)]
    assert_same_adapter(cold, warm)


def test_a_trainer_that_waits_has_its_libraries_and_nothing_on_the_gpu() -> None:
    """What takes seconds is done before it reports ready; a context on the GPU, which takes memory, is not."""
    script = (
        f"import sys; from {PROGRAM} import standby; standby.load_libraries(); import torch; "
        "print(*(name in sys.modules for name in ('diffusers', 'peft', 'transformers')), "
        "torch.cuda.is_available() and torch._C._cuda_hasPrimaryContext(0))"
    )
    with waiting("-c", script) as trainer:
        status, output = trainer.end()

    assert (0, "True True True False") == (status, output.splitlines()[0])


def test_a_trainer_writes_its_last_output_to_its_run_folder(write_run: WriteRun) -> None:
    """After what is there; standard input is empty from then on."""
    folder = write_run()
    (folder / STDERR_FILE).write_text("before\n")
    script = (
        f"import sys; from {PROGRAM}.standby import wait_for_run; folder = wait_for_run(); "
        "print(folder, repr(sys.stdin.read())); sys.exit('the last word')"
    )
    with waiting("-c", script) as trainer:
        trainer.until_ready()
        trainer.hand_over(folder)
        end = trainer.end()

    assert (1, "") == end
    assert f"{folder} ''\n" == (folder / STDOUT_FILE).read_text()
    assert "before\nthe last word\n" == (folder / STDERR_FILE).read_text()


def test_a_trainer_that_waits_ends_with_its_daemon() -> None:
    """Quietly: nothing has gone wrong."""
    with waiting("-c", LIGHT, "--standby") as trainer:
        trainer.until_ready()
        trainer.line.close()

        assert (0, "") == trainer.end()


def test_half_a_path_is_none(tmp_path: Path) -> None:
    """The daemon died while it wrote."""
    with waiting("-c", LIGHT, "--standby") as trainer:
        trainer.until_ready()
        trainer.line.sendall(os.fsencode(tmp_path))
        trainer.line.close()

        assert (0, "") == trainer.end()
    assert [] == list(tmp_path.iterdir())


def test_sigterm_ends_a_trainer_that_waits_at_once() -> None:
    """It has nothing to save."""
    with waiting("-c", LIGHT, "--standby") as trainer:
        trainer.until_ready()
        trainer.process.send_signal(signal.SIGTERM)

        assert (-signal.SIGTERM, "") == trainer.end()


def test_a_run_folder_that_is_gone_ends_a_trainer_that_waits(tmp_path: Path) -> None:
    """The daemon sees that it did not take the run; where its output went until then it writes why."""
    with waiting("-c", LIGHT, "--standby") as trainer:
        trainer.until_ready()
        trainer.hand_over(tmp_path / "nowhere")
        status, output = trainer.end()

    assert status == 1
    assert f"{tmp_path}/nowhere/stderr.log" in output


@pytest.mark.parametrize("arguments", [[], ["/nowhere", "--standby"]])
def test_a_trainer_either_waits_or_is_given_its_run(arguments: list[str]) -> None:
    """One of the two."""
    with waiting("-c", LIGHT, *arguments) as trainer:
        status, output = trainer.end()

    assert status == 2
    assert "--standby" in output
