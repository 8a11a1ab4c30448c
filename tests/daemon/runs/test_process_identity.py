"""Which process it was: a process id alone proves nothing, since the next process may get it."""

import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from training_worker.runs.process_identity import BOOT_ID, RECORD_SELF, ProcessIdentity

# Waiting in tests is bounded, and generous: the machine may be slow.
TIMEOUT = 30.0


@contextmanager
def process(path: Path, script: str = "exec sleep 60") -> Iterator[tuple[subprocess.Popen[str], ProcessIdentity]]:
    """A process in a session of its own that has written down its identity, and reports that."""
    command = ["/bin/sh", "-c", RECORD_SELF, "sh", str(path), "/bin/sh", "-c", f"echo ready; {script}"]
    env = {"PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == "ready\n"
        identity = ProcessIdentity.read(path)
        assert identity is not None
        try:
            yield popen, identity
        finally:
            popen.kill()


def own_start_time(pid: int) -> int:
    """When a process started, as proc(5) has it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_process_is_known_by_what_it_wrote_down(tmp_path: Path) -> None:
    """Its id, its start and the boot are those that the kernel reports."""
    with process(tmp_path / "process") as (popen, identity):
        assert identity == ProcessIdentity(
            boot_id=BOOT_ID.read_text().strip(), pid=popen.pid, start_time=own_start_time(popen.pid)
        )
        assert identity.is_alive
        pidfd = identity.open()
        assert pidfd is not None
        os.close(pidfd)


def test_a_process_and_all_that_it_starts_are_marked_with_who_it_is(tmp_path: Path) -> None:
    """The mark needs no file: it follows from the identity, and no other process can have it."""
    with process(tmp_path / "process", "env") as (popen, identity):
        assert popen.stdout is not None
        assert identity.mark in popen.stdout.read().splitlines()
        assert identity.mark == f"TRAINING_TRAINER={identity.boot_id}/{popen.pid}/{identity.start_time}"


def test_a_process_that_has_ended_is_not_opened(tmp_path: Path) -> None:
    """However it ended."""
    with process(tmp_path / "process") as (popen, identity):
        popen.kill()
        popen.wait()

        assert identity.open() is None
        assert not identity.is_alive


@pytest.mark.parametrize("change", [{"start_time": 1}, {"boot_id": "another"}], ids=str)
def test_another_process_of_the_same_id_is_neither_opened_nor_hit(tmp_path: Path, change: dict[str, str | int]) -> None:
    """It is a stranger: from another time, or another boot."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no folder of files
    with process(tmp_path / "process") as (popen, identity):
        stranger = msgspec.structs.replace(identity, **change)

        assert stranger.open() is None
        assert not stranger.is_alive
        stranger.kill_leftovers()
        assert popen.poll() is None
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_thread_that_was_given_the_same_id_is_not_opened() -> None:
    """Threads take their ids from where processes do, and a host has many more of them."""
    ready, over = threading.Event(), threading.Event()
    pids: list[int] = []

    def live() -> None:
        pids.append(threading.get_native_id())
        ready.set()
        over.wait()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert ready.wait(TIMEOUT)
        identity = ProcessIdentity(boot_id=BOOT_ID.read_text().strip(), pid=pids[0], start_time=own_start_time(pids[0]))

        assert identity.open() is None
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("content", [None, b"", b"boot\n", b"boot\n7 (sh) S 1\n", b"boot\nx (sh\n", b"\xff\n\xff\n"])
def test_a_process_that_did_not_come_to_writing_is_nobody(tmp_path: Path, content: bytes | None) -> None:
    """The trainer never began."""
    path = tmp_path / "process"
    if content is not None:
        path.write_bytes(content)

    assert ProcessIdentity.read(path) is None


def test_a_name_with_spaces_and_parentheses_shifts_no_field(tmp_path: Path) -> None:
    """The kernel writes it between parentheses as it is."""
    fields = ["S", *(str(number) for number in range(40))]
    path = tmp_path / "process"
    path.write_text(f"boot\n7 (a) b (c) {' '.join(fields)}\n")

    assert ProcessIdentity.read(path) == ProcessIdentity(boot_id="boot", pid=7, start_time=18)


LEFTOVERS = """
sh -c 'echo marked $$; exec sleep 60' &
env -i /bin/sh -c 'echo unmarked $$; exec sleep 60' &
setsid sh -c 'echo elsewhere $$; exec sleep 60' &
"""


def is_gone(pid: int) -> bool:
    """Whether a process that was killed has ended; somebody else may yet have to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_only_marked_members_of_the_session_are_left_overs(tmp_path: Path) -> None:
    """What a dead trainer left on the GPU ends; who has no mark, or another session, is none of ours."""
    with process(tmp_path / "process", LEFTOVERS) as (popen, identity):
        assert popen.stdout is not None
        pids = {name: int(pid) for name, pid in (popen.stdout.readline().split() for _ in range(3))}
        popen.wait()
        pidfd = os.pidfd_open(pids["marked"])
        try:
            msgspec.structs.replace(identity, boot_id="another").kill_leftovers()
            assert not is_gone(pids["marked"])

            identity.kill_leftovers()

            assert select.select([pidfd], [], [], TIMEOUT)[0]
            assert [is_gone(pids[name]) for name in ("marked", "unmarked", "elsewhere")] == [True, False, False]
        finally:
            os.close(pidfd)
            for name in ("unmarked", "elsewhere"):
                os.kill(pids[name], signal.SIGKILL)
