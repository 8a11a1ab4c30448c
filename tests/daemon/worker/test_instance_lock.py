"""One daemon for each state directory."""

import subprocess
import sys
from pathlib import Path

import pytest

from training_worker.errors import SettingsError
from training_worker.worker.instance_lock import only_daemon


def test_a_second_daemon_is_refused_with_the_reason(tmp_path: Path) -> None:
    """The directory is named; the first one is not disturbed."""
    with only_daemon(tmp_path):
        for _ in range(2):
            with pytest.raises(SettingsError, match=f"cannot use state_dir {tmp_path}: another daemon does"):
                only_daemon(tmp_path).__enter__()


def test_a_directory_is_free_when_its_daemon_has_ended(tmp_path: Path) -> None:
    """However that ended."""
    with pytest.raises(ZeroDivisionError), only_daemon(tmp_path):
        _ = 1 / 0

    with only_daemon(tmp_path):
        pass


def test_a_directory_that_is_missing_is_made(tmp_path: Path) -> None:
    """The first start of a daemon needs no preparation."""
    with only_daemon(tmp_path / "lib" / "state"):
        assert (tmp_path / "lib" / "state").is_dir()


def test_two_directories_are_two_daemons(tmp_path: Path) -> None:
    """A host may have more than one."""
    with only_daemon(tmp_path / "a"), only_daemon(tmp_path / "b"):
        pass


def test_a_directory_that_cannot_be_used_is_a_wrong_setting(tmp_path: Path) -> None:
    """The operator learns which."""
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match=r"cannot use state_dir .*/file: "), only_daemon(tmp_path / "file"):
        pass


def test_a_trainer_does_not_hold_the_lock(tmp_path: Path) -> None:
    """It outlives its daemon, and must not keep the next one out."""
    with only_daemon(tmp_path):
        trainer = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=False
        )
    with trainer, only_daemon(tmp_path):
        assert trainer.poll() is None
