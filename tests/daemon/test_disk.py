"""Whether a job has room, and what is removed: never anything that a job needs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.daemon.test_attempt import CARD, STAND_IN, Host

from training_presets.disk import DiskNeed
from training_schemas.progress import FailureReason
from training_worker.disk import Cleaning, EndedJob, free_bytes, lacking, note_ended
from training_worker.errors import AttemptError
from training_worker.identity import BOOT_ID

MIB = 2**20
AGE = 1000.0


def need(output: int, state: int = 0) -> DiskNeed:
    return DiskNeed(result=output, checkpoints=0, samples=0, state=state)


def test_what_does_not_fit_is_told_with_figures(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """On a real file system: a byte more than is free does not fit, and the output need not be there yet."""
    outputs = small_disk(tmp_path / "outputs", 64 * MIB)
    state = small_disk(tmp_path / "state", 16 * MIB)
    output = outputs / "team" / "portrait"

    assert free_bytes(output) == 64 * MIB
    assert lacking(need(64 * MIB, 16 * MIB), output, state) is None
    assert lacking(need(2**30), output, state) == f"1.0 GiB are needed at {output}, and 0.1 are free"
    both = lacking(need(2**30, 2**31), output, state)
    assert both is not None
    assert both.endswith(f"2.0 GiB are needed at {state}, and 0.0 are free")


def test_one_disk_must_hold_both(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """Where state and outputs share a file system, each alone may fit and both may not."""
    disk = small_disk(tmp_path / "disk", 64 * MIB)

    assert lacking(need(40 * MIB, 40 * MIB), disk / "models" / "a", disk / "state") is not None
    assert lacking(need(32 * MIB, 32 * MIB), disk / "models" / "a", disk / "state") is None


def test_a_job_without_room_is_left_to_others(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """As hostUnfit, with the figures; a card that is made up trains tiny models, and is not asked."""
    host = Host(tmp_path)
    small_disk(host.outputs, 64 * MIB)

    with pytest.raises(
        AttemptError, match=r"no room on the disk: .* GiB are needed at .*portrait, and 0\.1 are free"
    ) as caught:
        host.spec(card=CARD)

    assert caught.value.reason is FailureReason.HOST_UNFIT
    assert host.spec(card=STAND_IN).device == "cpu"


class Folders:
    """A state directory and outputs, with things of a given age in them."""

    def __init__(self, folder: Path) -> None:
        self.state, self.models = folder / "state", folder / "models"
        self.models.mkdir()
        self.now = time.time()

    def make(self, path: Path, *, old: bool = True, identity: str = "") -> Path:
        path.mkdir(parents=True)
        (path / "file").write_text("x")
        if identity:
            (path / "process").write_text(identity)
        self.age(path, old=old)
        return path

    def age(self, path: Path, *, old: bool) -> None:
        when = self.now - AGE - 10 if old else self.now
        for each in (*path.rglob("*"), path):
            os.utime(each, (when, when))

    def ended(self, job_id: str, attempt: int = 1, *, old: bool = True, output: Path | None = None) -> None:
        path = str(output or self.models / "out")
        note_ended(self.state, EndedJob(job_id=job_id, output_path=path, attempt=attempt))
        self.age(self.state / "ended" / f"{job_id}.json", old=old)

    def clean(self) -> list[Path]:
        return Cleaning(self.state, [self.models], self.now - AGE).clean()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture
def running() -> Iterator[str]:
    """The identity of a process that runs."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield f"{BOOT_ID.read_text().strip()}\n{Path(f'/proc/{process.pid}/stat').read_text().strip()}\n"
        process.kill()


def test_nothing_is_removed_where_nothing_is(folders: Folders) -> None:
    """A host that is new has none of the folders."""
    assert folders.clean() == []


def test_run_folders_that_nobody_can_read_go_when_they_are_old(folders: Folders, running: str) -> None:
    """Not the young, and not one whose trainer still runs."""
    runs = folders.state / "runs"
    old = folders.make(runs / "a.1")
    (old / "run.json").write_text("{torn")
    (old / "spec.json").write_text("{torn")
    folders.age(old, old=True)
    young = folders.make(runs / "b.1", old=False)
    alive = folders.make(runs / "c.1", identity=running)

    assert folders.clean() == [old]
    assert young.exists()
    assert alive.exists()


def test_a_folder_in_which_one_file_is_young_is_young(folders: Folders) -> None:
    """However deep it lies."""
    folder = folders.make(folders.state / "standby" / "GPU-1" / "diffusers")
    deep = folders.make(folder / "deep" / "er")
    (deep / "new").write_text("x")

    assert folders.clean() == []


def test_standby_folders_go_unless_a_trainer_waits_in_them(folders: Folders, running: str) -> None:
    """It may wait for longer than the age."""
    dead = folders.make(folders.state / "standby" / "GPU-1" / "diffusers")
    waiting = folders.make(folders.state / "standby" / "GPU-2" / "diffusers", identity=running)

    assert folders.clean() == [dead]
    assert waiting.exists()


def test_attempts_of_jobs_that_ended_here_go_and_no_others(folders: Folders) -> None:
    """What another job, another worker or a user left beside the same output stays."""
    mine = [folders.make(folders.models / f".out.mine.{number}") for number in (1, 2)]
    later = folders.make(folders.models / ".out.mine.3")
    others = [folders.make(folders.models / name) for name in (".out.other.1", "out", ".out.mine.x", ".outer.mine.1")]
    folders.ended("mine", attempt=2)

    assert folders.clean() == mine
    assert later.exists()
    assert all(path.exists() for path in others)
    assert folders.clean() == []


def test_attempts_stay_while_their_note_or_they_are_young(folders: Folders) -> None:
    """A job that failed yesterday may be put back today, and goes on from its checkpoint."""
    attempt = folders.make(folders.models / ".out.a.1")
    folders.ended("a", old=False)
    assert folders.clean() == []

    folders.ended("a", old=True)
    folders.age(attempt, old=False)
    assert folders.clean() == []


def test_attempts_of_a_job_that_was_put_back_and_runs_stay(folders: Folders) -> None:
    """It may resume from them; the note is kept for later."""
    attempt = folders.make(folders.models / ".out.a.1")
    folders.make(folders.state / "runs" / "a.2", old=False)
    folders.ended("a")

    assert folders.clean() == []
    assert attempt.exists()
    assert (folders.state / "ended" / "a.json").exists()


def test_a_note_that_points_outside_the_roots_removes_nothing(folders: Folders, tmp_path: Path) -> None:
    """Roots may have changed; a link in an attempt's place is not followed."""
    outside = folders.make(tmp_path / "elsewhere" / ".out.a.1")
    folders.ended("a", output=tmp_path / "elsewhere" / "out")
    target = folders.make(tmp_path / "precious")
    (folders.models / ".out.b.1").symlink_to(target)
    folders.ended("b")

    assert folders.clean() == []
    assert outside.exists()
    assert target.exists()


def test_a_torn_note_is_left(folders: Folders) -> None:
    """And harms nothing."""
    folders.ended("a")
    (folders.state / "ended" / "a.json").write_bytes(msgspec.json.encode({"jobId": 1}))

    assert folders.clean() == []
