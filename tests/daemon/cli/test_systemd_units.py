"""The units: put in place, and removed again, on a root of the test's own."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from training_worker.cli.systemd_units import (
    PROGRAM,
    RECORD,
    SOURCES,
    TEMPLATE,
    UNIT,
    UNITS,
    install_units,
    run_steps,
    steps_of_install,
    steps_of_undo,
)
from training_worker.errors import SettingsError
from training_worker.settings import load_settings

BIN = Path("/opt/venv/bin/training-worker")
EXPOSURE = 2.5


def install(root: Path, *, per_gpu: bool = False, dry: bool = False) -> list[str]:
    """What is reported."""
    lines: list[str] = []
    run_steps(steps_of_install(root, BIN, per_gpu=per_gpu), lines.append, dry=dry)
    return lines


def undo(root: Path, *, dry: bool = False) -> list[str]:
    """What is reported."""
    lines: list[str] = []
    run_steps(steps_of_undo(root), lines.append, dry=dry)
    return lines


def files(root: Path) -> dict[str, bytes]:
    """All that is below a root."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_install_writes_what_it_reports_and_nothing_else(tmp_path: Path) -> None:
    """The unit starts the program that installed it; no command runs for an image."""
    lines = install(tmp_path)

    written = {line.removeprefix("write ") for line in lines if line.startswith("write ")}
    assert {str(tmp_path / name) for name in files(tmp_path)} == written
    assert f"ExecStart={BIN} run" in (tmp_path / UNITS / UNIT).read_text()
    assert PROGRAM not in (tmp_path / UNITS / UNIT).read_text()
    assert not (tmp_path / UNITS / TEMPLATE).exists()
    assert all(line.startswith(("write ", "make ")) for line in lines)


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    """It prints what the run itself prints."""
    lines = install(tmp_path, dry=True)
    assert files(tmp_path) == {}
    assert install(tmp_path) == lines

    before = files(tmp_path)
    lines = undo(tmp_path, dry=True)
    assert files(tmp_path) == before
    assert undo(tmp_path) == lines


def test_an_undo_removes_all_that_was_installed_and_nothing_else(tmp_path: Path) -> None:
    """Both kinds of units, the folders that were made; not settings, not state, not other people's folders."""
    (tmp_path / "etc/systemd").mkdir(parents=True)
    install(tmp_path)
    install(tmp_path, per_gpu=True)
    kept = {"etc/training-worker/worker.toml": b"x", "var/lib/training-worker/rates.json": b"{}"}
    for name, content in kept.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)

    undo(tmp_path)

    assert files(tmp_path) == kept
    assert (tmp_path / "etc/systemd").is_dir()
    assert not (tmp_path / UNITS).exists()


def test_a_file_that_was_changed_stays(tmp_path: Path) -> None:
    """And is named."""
    install(tmp_path)
    changed = tmp_path / UNITS / UNIT
    changed.write_text("mine")

    assert f"leave {changed}: it was changed" in undo(tmp_path)
    assert files(tmp_path) == {str(UNITS / UNIT): b"mine"}


@pytest.mark.parametrize("name", [str(UNITS / UNIT), "etc/tmpfiles.d/training-worker.conf"])
def test_somebody_else_s_file_is_not_overwritten(tmp_path: Path, name: str) -> None:
    """Nothing at all is done then."""
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")

    with pytest.raises(SettingsError, match=f"{name} is not as an install left it"):
        install(tmp_path)

    assert files(tmp_path) == {name: b"mine"}


def test_an_upgrade_overwrites_what_an_install_wrote(tmp_path: Path) -> None:
    """A file that an earlier version wrote is ours; one that is the same is left alone."""
    install(tmp_path)
    run_steps(steps_of_install(tmp_path, Path("/opt/new/bin/training-worker"), per_gpu=False), print, dry=False)

    assert "ExecStart=/opt/new/bin" in (tmp_path / UNITS / UNIT).read_text()
    undo(tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("unit", [UNIT, "training-worker@0.service"])
def test_an_enabled_unit_is_not_pulled_away(tmp_path: Path, unit: str) -> None:
    """The message has the command."""
    install(tmp_path)
    wants = tmp_path / UNITS / "multi-user.target.wants"
    wants.mkdir()
    (wants / unit).symlink_to("..")

    with pytest.raises(SettingsError, match=f"systemctl disable --now {unit}"):
        undo(tmp_path)


def test_undo_without_an_install_reports_that(tmp_path: Path) -> None:
    """It removes nothing by guess."""
    with pytest.raises(SettingsError, match=str(RECORD)):
        undo(tmp_path)


@pytest.mark.parametrize("program", ["/home/me/venv/bin/training-worker", "/root/x", "/opt/a b/x", "/opt/%i/x"])
def test_a_program_that_the_unit_cannot_start_is_refused(tmp_path: Path, program: str) -> None:
    """Homes are hidden from the unit, and some characters mean more to systemd than themselves."""
    with pytest.raises(SettingsError, match="a unit cannot start"):
        steps_of_install(tmp_path, Path(program), per_gpu=False)


def test_the_example_is_a_settings_file(tmp_path: Path) -> None:
    """As it is, and with all that is commented out."""
    text = (SOURCES / "worker.toml.example").read_text()
    whole = re.sub(r"^# (only_gpus|stop_grace|\[|python|\")", r"\1", text, flags=re.MULTILINE)
    for content in (text, whole):
        (tmp_path / "worker.toml").write_text(content)
        settings = load_settings(tmp_path / "worker.toml", {})
        assert settings.models

    assert (settings.only_gpus, settings.prices) == (["0", "GPU-..."], {"RTX 4090": 0.44})


@pytest.mark.parametrize("per_gpu", [False, True])
def test_systemd_finds_nothing_wrong(tmp_path: Path, missing: Callable[[str], NoReturn], *, per_gpu: bool) -> None:
    """`systemd-analyze verify` is silent, and `security` gives an exposure of at most 2.5."""
    if shutil.which("systemd-analyze") is None:
        missing("no systemd-analyze is installed")
    source = SOURCES / (TEMPLATE if per_gpu else UNIT)
    unit = tmp_path / source.name.replace("@", "@0")
    unit.write_text(source.read_text().replace(PROGRAM, sys.executable))

    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={int(EXPOSURE * 10)}", str(unit)]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout + rated.stderr
    assert "Overall exposure level" in rated.stdout


def test_the_command_shows_its_steps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes next."""
    monkeypatch.setattr(sys, "prefix", "/opt/venv")

    install_units(tmp_path, per_gpu=True, dry_run=True, undo=False)

    lines = capsys.readouterr().out
    assert f"write {tmp_path / UNITS / TEMPLATE}" in lines
    assert "systemctl enable --now training-worker@0" in lines
