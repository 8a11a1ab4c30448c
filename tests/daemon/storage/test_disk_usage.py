"""What folders occupy, and what is free."""

import os
from collections.abc import Callable
from pathlib import Path

from training_worker.storage.disk_usage import changed_at, device_of, folders_in, free_bytes, tree_bytes

MIB = 2**20


def test_what_is_free_is_known_of_a_folder_that_is_not_there_yet(
    small_disk: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    """And so is the disk it will be on."""
    disk = small_disk(tmp_path / "disk", 64 * MIB)

    assert free_bytes(disk / "team" / "portrait") == 64 * MIB
    assert device_of(disk / "team" / "portrait") == device_of(disk) != device_of(tmp_path)


def test_the_size_of_a_tree_is_what_is_gone_from_the_disk(
    small_disk: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    """Files of two names once, holes not at all, links not followed."""
    disk = small_disk(tmp_path / "disk", 64 * MIB)
    (tmp_path / "large").write_bytes(bytes(MIB))
    tree = disk / "a"
    (tree / "b").mkdir(parents=True)
    (tree / "b" / "one").write_bytes(bytes(3 * MIB))
    (tree / "two").hardlink_to(tree / "b" / "one")
    (tree / "link").symlink_to(tmp_path / "large")
    (tree / "away").symlink_to(tmp_path)
    with (tree / "hole").open("wb") as file:
        file.truncate(20 * MIB)

    assert tree_bytes(tree) == 3 * MIB == 64 * MIB - free_bytes(disk)
    assert tree_bytes(disk / "none") == 0


def test_a_tree_has_changed_when_anything_in_it_has(tmp_path: Path) -> None:
    """However deep it lies."""
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b", deep):
        os.utime(path, (1, 1))
    os.utime(deep / "file", (7, 7))

    assert changed_at(tmp_path / "a") == 7
    assert changed_at(tmp_path / "none") == 0


def test_folders_are_listed_without_files_and_links(tmp_path: Path) -> None:
    """None in what is none."""
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")

    assert folders_in(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert folders_in(tmp_path / "file") == folders_in(tmp_path / "none") == []
