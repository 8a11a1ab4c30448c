"""What is removed: never anything that a job needs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from training_worker.observations import DiskUse
from training_worker.runs.process_identity import BOOT_ID
from training_worker.settings import Settings
from training_worker.storage.cleanup import YOUNG, Cleanup
from training_worker.storage.disk_usage import DAY, free_bytes
from training_worker.storage.ended_jobs import EndedJob, note_ended

MIB = 2**20
KEEP_DAYS = 14
OLD = KEEP_DAYS * DAY + 60


class Folders:
    """A state directory and outputs, with things of a given age in them."""

    def __init__(self, folder: Path) -> None:
        self.state, self.models = folder / "state", folder / "models"
        self.models.mkdir(exist_ok=True)
        self.busy: set[str] = set()
        self.limit_gib = 100.0

    def make(self, path: Path, age: float = OLD, *, identity: str = "", size: int = 1) -> Path:
        """A folder with a file in it, unchanged for so many seconds."""
        path.mkdir(parents=True)
        (path / "file").write_bytes(bytes(size))
        if identity:
            (path / "process").write_text(identity)
        self.age(path, age)
        return path

    def age(self, path: Path, age: float) -> None:
        when = time.time() - age
        for each in (*path.rglob("*"), path):
            os.utime(each, (when, when))

    def torn(self, name: str, age: float = OLD, *, identity: str = "", size: int = 1) -> Path:
        """A run folder that no daemon can read."""
        path = self.make(self.state / "runs" / name, identity=identity, size=size)
        for file in ("run.json", "spec.json"):
            (path / file).write_text("{torn")
        self.age(path, age)
        return path

    def cached(self, name: str, age: float, size: int = 1) -> Path:
        path = self.state / "caches" / "entries" / name[:2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        self.age(path, age)
        return path

    def ended(self, job_id: str, attempt: int = 1, age: float = OLD, output: Path | None = None) -> None:
        path = str(output or self.models / "out")
        note_ended(self.state, EndedJob(job_id=job_id, output_path=path, attempt=attempt))
        self.age(self.state / "ended" / f"{job_id}.json", age)

    @property
    def cleanup(self) -> Cleanup:
        settings = Settings(
            state_dir=self.state, output_roots=[self.models], keep_days=KEEP_DAYS, keep_limit=self.limit_gib
        )
        return Cleanup(settings, lambda: self.busy)

    def cleaned(self, *candidates: Path) -> list[Path]:
        """Which of these are gone after a cleaning."""
        self.cleanup.clean()
        return [path for path in candidates if not path.exists()]


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
    folders.cleanup.clean()

    assert set(folders.cleanup.use().values()) == {0}


def test_run_folders_that_nobody_can_read_go_when_they_are_old(folders: Folders, running: str) -> None:
    """Not the young, and not one whose trainer still runs."""
    old, young = folders.torn("a.1"), folders.torn("b.1", age=2 * DAY)
    alive = folders.torn("c.1", identity=running)

    assert folders.cleaned(old, young, alive) == [old]


def test_standby_folders_go_unless_a_trainer_waits_in_them(folders: Folders, running: str) -> None:
    """It may wait for longer than the age; a folder is as young as what is in it."""
    dead = folders.make(folders.state / "standby" / "GPU-1" / "diffusers")
    waiting = folders.make(folders.state / "standby" / "GPU-2" / "diffusers", identity=running)
    young = folders.make(folders.state / "standby" / "GPU-3" / "diffusers")
    folders.make(young / "deep", age=0)

    assert folders.cleaned(dead, waiting, young) == [dead]


def test_caches_that_nobody_uses_go(folders: Folders) -> None:
    """By their last use."""
    old, young = folders.cached("aa1", OLD), folders.cached("aa2", 2 * DAY)

    assert folders.cleaned(old, young) == [old]


def test_attempts_of_jobs_that_ended_here_go_and_no_others(folders: Folders) -> None:
    """What another job, another worker or a user left beside the same output stays."""
    mine = [folders.make(folders.models / f".out.mine.{number}") for number in (1, 2)]
    later = folders.make(folders.models / ".out.mine.3")
    others = [folders.make(folders.models / name) for name in (".out.other.1", "out", ".out.mine.x", ".outer.mine.1")]
    folders.ended("mine", attempt=2)

    assert folders.cleaned(*mine, later, *others) == mine
    assert not (folders.state / "ended" / "mine.json").exists()


def test_attempts_stay_while_their_note_or_they_are_young(folders: Folders) -> None:
    """A job that failed yesterday may be requeued today, and resumes from its checkpoint."""
    attempt = folders.make(folders.models / ".out.a.1")
    folders.ended("a", age=DAY)
    assert folders.cleaned(attempt) == []

    folders.ended("a")
    folders.age(attempt, DAY)
    assert folders.cleaned(attempt) == []


def test_attempts_of_a_job_that_was_requeued_and_runs_stay(folders: Folders) -> None:
    """It may resume from them; the note is kept for later."""
    attempt = folders.make(folders.models / ".out.a.1")
    folders.make(folders.state / "runs" / "a.2", age=0)
    folders.ended("a")

    assert folders.cleaned(attempt) == []
    assert (folders.state / "ended" / "a.json").exists()


def test_attempts_of_a_job_that_is_being_claimed_stay(folders: Folders) -> None:
    """It has no run folder yet, and will look for its checkpoint in an instant."""
    attempt = folders.make(folders.models / ".out.a.1")
    folders.ended("a")
    folders.busy = {"a"}

    assert folders.cleaned(attempt) == []


def test_attempts_of_a_job_that_another_worker_tries_again_stay(folders: Folders) -> None:
    """Its output is on a disk that they share; it may resume from what was left there by this worker."""
    attempt = folders.make(folders.models / ".out.a.1")
    folders.make(folders.models / ".out.a.2", age=DAY)
    folders.ended("a")

    assert folders.cleaned(attempt) == []


def test_a_note_that_points_outside_the_roots_removes_nothing(folders: Folders, tmp_path: Path) -> None:
    """Roots may have changed; a link in an attempt's place is not followed."""
    outside = folders.make(tmp_path / "elsewhere" / ".out.a.1")
    folders.ended("a", output=tmp_path / "elsewhere" / "out")
    target = folders.make(tmp_path / "precious")
    (folders.models / ".out.b.1").symlink_to(target)
    folders.ended("b")

    assert folders.cleaned(outside, target, target / "file") == []


def test_a_torn_note_is_left(folders: Folders) -> None:
    """And harms nothing."""
    folders.ended("a")
    (folders.state / "ended" / "a.json").write_bytes(msgspec.json.encode({"jobId": 1}))

    assert folders.cleaned(folders.state / "ended" / "a.json") == []


def test_what_is_beyond_the_limit_goes_before_its_time_the_oldest_first(folders: Folders) -> None:
    """But for what was left within the last day."""
    attempts = [
        folders.make(folders.models / f".out.{name}.1", age=days * DAY, size=4 * MIB)
        for name, days in (("a", 3), ("b", 5), ("c", 0.5), ("d", 2))
    ]
    for name, days in (("a", 3), ("b", 5), ("c", 0.5), ("d", 2)):
        folders.ended(name, age=days * DAY)
    a, b, c, d = attempts

    folders.limit_gib = 5 / 1024
    assert folders.cleaned(*attempts) == [a, b]
    folders.limit_gib = 0
    assert folders.cleaned(*attempts) == [a, b, d]
    assert c.exists()


class Full(Folders):
    """A disk of 32 MiB that holds 4 MiB of each: caches, one in use, a run folder, attempts of ended jobs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        size = 4 * MIB
        self.recent, self.stale = self.cached("aa1", 60, size), self.cached("aa2", 600, size)
        self.run = self.torn("x.1", age=3 * DAY, size=size)
        self.first = self.make(self.models / ".out.a.1", age=4 * DAY, size=size)
        self.last = self.make(self.models / ".out.b.1", age=2 * DAY, size=size)
        self.young = self.make(self.models / ".out.c.1", age=YOUNG / 2, size=size)
        for name, days in (("a", 4), ("b", 2), ("c", 0.5)):
            self.ended(name, age=days * DAY)

    @property
    def gone(self) -> list[Path]:
        spare = (self.stale, self.recent, self.first, self.run, self.last, self.young)
        return [path for path in spare if not path.exists()]


@pytest.fixture
def full(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> Full:
    return Full(small_disk(tmp_path / "disk", 32 * MIB))


@pytest.mark.parametrize(("wanted_mib", "count"), [(1, 0), (9, 1), (13, 2), (17, 3), (21, 4), (25, 5), (29, 0)])
def test_room_is_made_only_as_far_as_it_is_needed(full: Full, wanted_mib: int, count: int) -> None:
    """Caches first, then what is oldest, and nothing of the last day; nothing at all where all would not do."""
    order = [full.stale, full.recent, full.first, full.run, full.last]

    full.cleanup.make_room(full.models / "out", wanted_mib * MIB)

    assert full.gone == order[:count]
    assert (free_bytes(full.models) >= wanted_mib * MIB) == (wanted_mib < 29)


def test_no_room_is_made_of_what_an_active_job_may_resume_from(full: Full) -> None:
    """However much is needed."""
    full.busy = {"a"}

    full.cleanup.make_room(full.models / "out", 21 * MIB)

    assert full.gone == [full.stale, full.recent, full.run, full.last]


def test_room_is_made_on_the_disk_that_lacks_it(
    full: Full, small_disk: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    """Caches on another disk would not help."""
    other = Folders(tmp_path / "disk")
    other.models = small_disk(tmp_path / "other", 8 * MIB)
    attempt = other.make(other.models / ".out.d.1", age=2 * DAY, size=4 * MIB)
    other.ended("d", age=2 * DAY, output=other.models / "out")

    other.cleanup.make_room(other.models / "new", 8 * MIB)

    assert not attempt.exists()
    assert full.gone == []


def test_what_the_disk_holds_is_reported(full: Full) -> None:
    """By kind; what ended jobs left counts however young it is, what running ones write does not."""
    full.make(full.state / "standby" / "GPU-1" / "diffusers", size=MIB)
    full.make(full.state / "elsewhere", size=2 * MIB)
    full.make(full.models / ".out.running.1", size=MIB)
    page = os.sysconf("SC_PAGE_SIZE")

    use = full.cleanup.use()

    # A page for each small file.
    assert use == {
        DiskUse.RUNS: 4 * MIB + 2 * page,
        DiskUse.CACHES: 8 * MIB,
        DiskUse.STANDBY: MIB,
        DiskUse.ENDED: 12 * MIB,
        DiskUse.OTHER: 2 * MIB + 3 * page,
    }
