"""The host's disks: their free space, and the size of folders."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

GIB = 2**30
DAY = 24 * 3600.0

# The unit of `st_blocks`, whatever the file system's own blocks are.
BLOCK = 512


def existing(path: Path) -> Path:
    """Return the path itself, or the nearest existing folder above it."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_bytes(path: Path) -> int:
    """Return the free space below a path, which need not exist yet. Raises `OSError`."""
    return shutil.disk_usage(existing(path)).free


def device_of(path: Path) -> int:
    """Return the device of the file system below a path, which need not exist yet. Raises `OSError`."""
    return existing(path).stat().st_dev


def tree_bytes(folder: Path) -> int:
    """Return a folder's size on its disk; a file of several names counts once. 0 if it does not exist."""
    return sum({(status.st_dev, status.st_ino): status.st_blocks * BLOCK for status in _statuses(folder)}.values())


def changed_at(folder: Path) -> float:
    """Return when anything in a folder changed last (unix seconds). 0 if it does not exist."""
    return max((status.st_mtime for status in _statuses(folder)), default=0.0)


def folders_in(path: Path) -> list[Path]:
    """Return the folders right below a path, by name; none if it is no folder."""
    try:
        return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _statuses(folder: Path) -> Iterator[os.stat_result]:
    """Yield the status of the folder and all below it; what vanishes meanwhile is left out."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for path in (root, *(f"{root}/{name}" for name in (*files, *links))):
            try:
                yield os.lstat(path)
            except OSError:
                continue
