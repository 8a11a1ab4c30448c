"""Caches on the host's disk: what is in use stays."""

import fcntl
import os
from pathlib import Path

import pytest

from training_worker.storage.cache_entries import Caches

PLENTY = 2**30


def put(folder: Path, name: str, used_at: float, size: int = 100) -> Path:
    path = folder / "entries" / name[:2] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used_at, used_at))
    return path


def open_run(folder: Path, name: str, *entries: Path) -> Path:
    """A run's folder with links to what it uses; nobody holds its lock yet."""
    run = folder / "runs" / name
    run.mkdir(parents=True)
    (run / "lock").touch()
    for entry in entries:
        (run / entry.name).hardlink_to(entry)
    return run


def test_what_an_open_run_uses_is_not_unused(tmp_path: Path) -> None:
    """The others are, the one that was used longest ago first; what is being written is nobody's."""
    newest, oldest, used = put(tmp_path, "aa1", 30), put(tmp_path, "bb2", 10), put(tmp_path, "aa3", 20)
    put(tmp_path, ".aa4", 5)
    run = open_run(tmp_path, "run", used)

    with (run / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [entry.path for entry in Caches(tmp_path).unused()] == [oldest, newest]

    assert [entry.path for entry in Caches(tmp_path).unused()] == [oldest, used, newest]
    assert not run.exists()


def test_a_run_that_is_just_being_opened_is_left_alone(tmp_path: Path) -> None:
    """It has a hidden name until it is locked."""
    run = open_run(tmp_path, ".run")

    assert Caches(tmp_path).unused() == []
    assert run.exists()


@pytest.mark.parametrize(("before", "limit", "left"), [(25, PLENTY, {"aa3"}), (0, 200, {"aa2", "aa3"}), (0, 300, None)])
def test_entries_go_by_age_and_beyond_the_limit(
    tmp_path: Path, before: float, limit: int, left: set[str] | None
) -> None:
    """Those that were used longest ago first."""
    entries = [put(tmp_path, f"aa{number}", 10.0 * number) for number in (1, 2, 3)]

    removed = Caches(tmp_path).clean(before, limit)

    there = {entry.name for entry in entries if entry.exists()}
    assert there == (left or {"aa1", "aa2", "aa3"})
    assert {path.name for path in removed} == {"aa1", "aa2", "aa3"} - there


def test_what_is_used_stays_however_old_and_large(tmp_path: Path) -> None:
    """It would free nothing: the run has another name of it."""
    used = put(tmp_path, "aa1", 10)
    with (open_run(tmp_path, "run", used) / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert Caches(tmp_path).clean(before=100, limit_bytes=0) == []

    assert used.exists()
