"""Folders that each belong to a process: it holds a lock on its own while it lives, and when it is dead they go."""

import fcntl
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "lock"
# Seconds after which what has the name of something unfinished will not be finished any more.
UNFINISHED = 3600.0


@contextmanager
def held_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that nobody removes before this ends or the process dies; both remove what is in it.

    It has a hidden name until it is locked, so that none is seen under its own name that is not.
    """
    name = secrets.token_hex(8)
    unfinished, folder = parent / f".{name}", parent / name
    unfinished.mkdir()
    try:
        with (unfinished / LOCK_FILE).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.rename(folder)
            yield folder
    finally:
        for path in (unfinished, folder):
            shutil.rmtree(path, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of dead processes; another process may do the same at the same time."""
    for folder in parent.iterdir():
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def is_unfinished_for_long(path: Path) -> bool:
    """Whether a hidden name is more than an hour old, so that who began it must be dead."""
    try:
        return path.name.startswith(".") and time.time() - path.stat().st_mtime > UNFINISHED
    except FileNotFoundError:
        return False


def _is_abandoned(folder: Path) -> bool:
    if folder.name.startswith("."):
        return is_unfinished_for_long(folder)
    try:
        with (folder / LOCK_FILE).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True  # somebody is just removing it, or died of it
    except BlockingIOError:
        return False
    return True
