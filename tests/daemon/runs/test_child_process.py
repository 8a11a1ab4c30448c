"""Children as groups: real shells, real signals, and an end that is always reported and never waited for in vain."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.support.processes import is_gone

from training_worker.runs.child_process import UNKNOWN, ChildProcess, Exit
from training_worker.runs.file_tail import follow_lines
from training_worker.runs.process_identity import RECORD_SELF, ProcessIdentity

# Waiting in tests is bounded, and generous: the machine may be slow.
TIMEOUT = 30.0
# Long enough for a shell that obeys a signal, and waited for only by tests whose shell does not.
SHORT_GRACE = 0.3


class Shell:
    """Starts scripts with their output in files."""

    def __init__(self, folder: Path) -> None:
        self.stdout = folder / "out.txt"
        self.stderr = folder / "err.txt"
        self.identity = folder / "process"

    def start(self, script: str, env: dict[str, str] | None = None) -> ChildProcess:
        """Run a script in ``/bin/sh``."""
        return self.run(["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"} | (env or {}))

    def run(self, command: list[str], env: dict[str, str]) -> ChildProcess:
        """Run a program."""
        return ChildProcess.start(command, env=env, stdout=self.stdout, stderr=self.stderr, identity=self.identity)

    async def until_printed(self, start: str) -> str:
        """Wait until a line of the output starts with this; the rest of that line."""
        found: list[str] = []
        enough = asyncio.Event()
        async with asyncio.timeout(TIMEOUT):
            async for line, _ in follow_lines(self.stdout, enough):
                if line.startswith(start.encode()):
                    found.append(line.decode().removeprefix(start).strip())
                    enough.set()
        return found[0]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell for one test."""
    return Shell(tmp_path)


async def end(child: ChildProcess) -> Exit:
    """How it ended, by itself."""
    return await asyncio.wait_for(child.wait(), TIMEOUT)


def kill(child: ChildProcess) -> None:
    """What somebody else may do to it."""
    os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.parametrize("status", [0, 1, 137])
async def test_an_exit_status_is_reported_as_it_is(shell: Shell, status: int) -> None:
    """A status above 128 is a status too, not a signal."""
    exit_ = await end(shell.start(f"exit {status}"))

    assert exit_ == Exit(status=status)
    assert str(exit_) == f"exit status {status}"


@pytest.mark.parametrize("name", ["KILL", "SEGV"])
async def test_a_process_that_was_killed_is_reported_with_its_signal(shell: Shell, name: str) -> None:
    """What the kernel or somebody else did to it is reported by name."""
    exit_ = await end(shell.start(f"kill -{name} $$"))

    assert exit_ == Exit(signal=signal.Signals[f"SIG{name}"])
    assert str(exit_) == f"killed by SIG{name}"


async def test_a_signal_without_a_name_is_reported_by_its_number(shell: Shell) -> None:
    """Real-time signals have none, apart from the first and the last."""
    exit_ = await end(shell.start("kill -40 $$"))

    assert exit_ == Exit(signal=40)
    assert "40" in str(exit_)


async def test_output_goes_to_files_after_what_is_there(shell: Shell) -> None:
    """Both streams are kept apart, and what another attempt left is not overwritten."""
    shell.stdout.write_text("before\n")

    await end(shell.start("echo out; echo err >&2"))

    assert (shell.stdout.read_text(), shell.stderr.read_text()) == ("before\nout\n", "err\n")


async def test_a_child_has_exactly_the_environment_it_was_given(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own variables, secrets first of all, do not reach it."""
    monkeypatch.setenv("TRAINING_AMQP_URL", "amqp://user:secret@broker/")

    await end(shell.run(["/usr/bin/env"], {"ONE": "1", "TWO": "2"}))

    identity = ProcessIdentity.read(shell.identity)
    assert identity is not None
    assert sorted(shell.stdout.read_text().splitlines()) == ["ONE=1", identity.mark, "TWO=2"]


async def test_a_child_reads_nothing_from_the_daemon(shell: Shell) -> None:
    """Its standard input is empty, whatever the daemon's own is."""
    await end(shell.start("read line; echo got=$?"))

    assert shell.stdout.read_text() == "got=1\n"


async def test_a_child_leads_a_session_of_its_own(shell: Shell) -> None:
    """A signal to the daemon's terminal or group does not reach it."""
    child = shell.start("echo ready; exec sleep 60")
    await shell.until_printed("ready")

    assert (os.getsid(child.pid), os.getpgid(child.pid)) == (child.pid, child.pid)
    kill(child)
    assert await end(child) == Exit(signal=signal.SIGKILL)


@pytest.mark.parametrize("program", ["/no-such-folder/program", "no-such-program", "/etc/passwd"])
async def test_a_missing_program_is_an_error_at_once(shell: Shell, program: str) -> None:
    """No child, no waiting: the operator's setting is wrong."""
    with pytest.raises(FileNotFoundError, match=f"no such program: {program}"):
        shell.run([program], {"PATH": "/usr/bin:/bin"})

    assert not shell.identity.exists()


async def test_a_program_is_looked_for_on_the_path_of_its_own_environment(shell: Shell, tmp_path: Path) -> None:
    """That is where it is then executed from."""
    program = tmp_path / "bin" / "trainer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)

    assert await end(shell.run(["trainer"], {"PATH": str(program.parent)})) == Exit(status=7)


async def test_a_child_that_respects_sigterm_ends_in_its_own_way(shell: Shell) -> None:
    """It has the whole grace to save a checkpoint, and its status is reported."""
    child = shell.start("trap 'echo saved; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    await shell.until_printed("ready")

    assert await child.stop(TIMEOUT) == Exit(status=3)
    assert shell.stdout.read_text() == "ready\nsaved\n"


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(shell: Shell) -> None:
    """Stopping is bounded, whatever the child thinks of it."""
    child = shell.start("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    await shell.until_printed("ready")

    assert await asyncio.wait_for(child.stop(SHORT_GRACE), TIMEOUT) == Exit(signal=signal.SIGKILL)


async def test_a_child_that_is_stopped_while_it_is_stopped_by_the_kernel_still_ends(shell: Shell) -> None:
    """A suspended process cannot handle SIGTERM; SIGKILL ends it all the same."""
    child = shell.start("echo ready; kill -STOP $$")
    await shell.until_printed("ready")
    async with asyncio.timeout(TIMEOUT):
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110, ASYNC240 - no event
            await asyncio.sleep(0.01)

    assert await asyncio.wait_for(child.stop(SHORT_GRACE), TIMEOUT) == Exit(signal=signal.SIGKILL)


async def test_a_grandchild_is_killed_when_the_child_has_ended(shell: Shell) -> None:
    """What holds the GPU's memory after the trainer is gone is ended with it, though it ignores SIGTERM."""
    grandchild = "sh -c 'trap \"\" TERM; echo grandchild $$; while :; do sleep 0.01; done' &"
    until_printed = "until grep -q grandchild $OUT; do sleep 0.01; done"
    child = shell.start(f"{grandchild} {until_printed}; exit 0", {"OUT": str(shell.stdout)})

    assert await end(child) == Exit(status=0)
    assert is_gone(int(await shell.until_printed("grandchild")), TIMEOUT)


async def test_a_grandchild_that_ignores_sigterm_does_not_outlive_the_stop(shell: Shell) -> None:
    """The child obeys at once; the group is killed without waiting for the rest of the grace."""
    grandchild = "sh -c 'trap \"\" TERM; echo grandchild $$; while :; do sleep 0.01; done' &"
    child = shell.start(f"trap 'exit 4' TERM; {grandchild} while :; do sleep 0.01; done")
    pid = int(await shell.until_printed("grandchild"))

    assert await asyncio.wait_for(child.stop(TIMEOUT), TIMEOUT) == Exit(status=4)
    assert is_gone(pid, TIMEOUT)


async def test_the_end_can_be_read_again(shell: Shell) -> None:
    """Waiting and stopping after the end answer; they never signal a stranger of that id."""
    child = shell.start("exit 5")

    assert await end(child) == Exit(status=5)
    assert await end(child) == Exit(status=5)
    assert await child.stop(SHORT_GRACE) == Exit(status=5)


async def test_many_can_wait_for_the_same_child(shell: Shell) -> None:
    """Each gets the same."""
    child = shell.start("echo ready; exec sleep 60")
    waiting = [asyncio.create_task(end(child)) for _ in range(3)]
    await shell.until_printed("ready")
    kill(child)

    assert await asyncio.gather(*waiting) == [Exit(signal=signal.SIGKILL)] * 3


async def test_cancelling_the_wait_leaves_the_child_alone(shell: Shell) -> None:
    """Whoever stops waiting has not stopped the trainer."""
    child = shell.start("echo ready; exec sleep 60")
    await shell.until_printed("ready")
    waiting = asyncio.create_task(child.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})

    assert waiting.cancelled()
    os.kill(child.pid, 0)
    kill(child)
    assert await end(child) == Exit(signal=signal.SIGKILL)


async def test_an_ended_child_leaves_no_descriptor_open(shell: Shell) -> None:
    """A daemon starts thousands of them."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the folder is the process itself

    for _ in range(3):
        await end(shell.start("exit 0"))

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_a_child_writes_down_who_it_is_before_the_program_begins(shell: Shell) -> None:
    """Whenever the daemon dies, a trainer that runs can be found."""
    child = shell.start('cat "$IDENTITY"', {"IDENTITY": str(shell.identity)})
    identity = ProcessIdentity.read(shell.identity) if await end(child) == Exit(status=0) else None

    assert shell.stdout.read_text() == shell.identity.read_text()
    assert identity is not None
    assert identity.pid == child.pid


def found(shell: Shell) -> ChildProcess:
    """The child that runs, found by what it wrote down."""
    identity = ProcessIdentity.read(shell.identity)
    child = ChildProcess.find(identity) if identity is not None else None
    assert child is not None
    return child


async def test_a_child_that_was_left_is_re_attached_and_its_end_is_reported(shell: Shell) -> None:
    """A daemon that was re-executed in place is still its parent."""
    child = shell.start("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    await shell.until_printed("ready")
    child.leave()

    again = found(shell)

    assert again.pid == child.pid
    assert await again.stop(TIMEOUT) == Exit(status=3)
    child._reap()  # for the sake of `subprocess`, which has not seen the end


async def test_a_child_of_somebody_else_is_waited_for_as_well(shell: Shell) -> None:
    """After a crash of the daemon nobody knows its status, but that it has ended is known."""
    script = "sleep 60 & echo grandchild $!; trap 'exit 3' TERM; while :; do sleep 0.01; done"
    command = ["setsid", "--fork", "/bin/sh", "-c", RECORD_SELF, "sh", str(shell.identity), "/bin/sh", "-c", script]
    with shell.stdout.open("wb") as file:
        subprocess.run(command, stdout=file, check=True)  # noqa: ASYNC221 - it ends at once
    grandchild = int(await shell.until_printed("grandchild"))

    child = found(shell)
    assert not child.ended.is_set()
    exit_ = await asyncio.wait_for(child.stop(TIMEOUT), TIMEOUT)

    assert (exit_, str(exit_)) == (UNKNOWN, "exit status unknown")
    assert is_gone(grandchild, TIMEOUT)


async def test_a_child_that_has_ended_is_not_found(shell: Shell) -> None:
    """Its id may be a stranger's by now."""
    await end(shell.start("exit 0"))

    identity = ProcessIdentity.read(shell.identity)
    assert identity is not None
    assert ChildProcess.find(identity) is None


async def test_a_stop_can_be_hurried(shell: Shell) -> None:
    """Whoever stops it twice does not wait for the rest of the grace."""
    child = shell.start("trap 'echo heard' TERM; echo ready; while :; do sleep 0.01; done")
    await shell.until_printed("ready")
    hurry = asyncio.Event()
    stopping = asyncio.create_task(child.stop(10 * TIMEOUT, hurry))
    await shell.until_printed("heard")
    assert not stopping.done()

    hurry.set()

    assert await asyncio.wait_for(stopping, TIMEOUT) == Exit(signal=signal.SIGKILL)


async def test_a_stop_without_grace_still_sends_sigterm_first(shell: Shell) -> None:
    """It ends, in one way or the other."""
    child = shell.start("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    await shell.until_printed("ready")
    hurry = asyncio.Event()
    hurry.set()

    assert await asyncio.wait_for(child.stop(10 * TIMEOUT, hurry), TIMEOUT) == Exit(signal=signal.SIGKILL)
