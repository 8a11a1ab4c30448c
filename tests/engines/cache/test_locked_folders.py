"""Folders that each belong to a process."""

import os
import time
from pathlib import Path

import pytest

from training_worker.engines.diffusers.cache.locked_folders import held_folder, is_unfinished_for_long, remove_abandoned

pytestmark = pytest.mark.trainer

AN_HOUR_AGO = 3660.0


def make_older(path: Path, seconds: float = AN_HOUR_AGO) -> None:
    """Set the time of a file or a folder back."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_folder_is_there_as_long_as_it_is_held(tmp_path: Path) -> None:
    """With all that is put into it; nobody removes it meanwhile."""
    with held_folder(tmp_path) as folder:
        (folder / "file").touch()
        make_older(folder)
        remove_abandoned(tmp_path)

        assert (folder / "file").exists()
        assert [folder] == list(tmp_path.iterdir())
    assert [] == list(tmp_path.iterdir())


def test_a_folder_goes_when_its_holder_fails(tmp_path: Path) -> None:
    """As it does at the end."""
    with pytest.raises(ValueError, match="failed"), held_folder(tmp_path):
        raise ValueError("failed")

    assert [] == list(tmp_path.iterdir())


def test_each_holder_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Also in one process."""
    with held_folder(tmp_path) as first, held_folder(tmp_path) as second:
        assert first != second
        assert {first, second} == set(tmp_path.iterdir())


@pytest.mark.parametrize("files", [["lock", "file"], ["file"], []])
def test_a_folder_whose_lock_nobody_holds_is_removed(tmp_path: Path, files: list[str]) -> None:
    """Also one that is half removed already."""
    folder = tmp_path / "abandoned"
    folder.mkdir()
    for name in files:
        (folder / name).touch()

    remove_abandoned(tmp_path)

    assert not folder.exists()


def test_a_folder_that_is_just_being_made_is_left_alone_for_an_hour(tmp_path: Path) -> None:
    """Nobody has locked it yet."""
    folder = tmp_path / ".unfinished"
    folder.mkdir()
    (folder / "lock").touch()

    remove_abandoned(tmp_path)
    assert folder.exists()

    make_older(folder)
    remove_abandoned(tmp_path)
    assert not folder.exists()


def test_only_a_hidden_name_that_is_old_is_unfinished_for_long(tmp_path: Path) -> None:
    """One that was finished meanwhile is not."""
    hidden, whole = tmp_path / ".file", tmp_path / "file"
    for path in (hidden, whole):
        path.touch()
    assert not is_unfinished_for_long(hidden)

    for path in (hidden, whole):
        make_older(path)

    assert is_unfinished_for_long(hidden)
    assert not is_unfinished_for_long(whole)
    assert not is_unfinished_for_long(tmp_path / ".missing")
