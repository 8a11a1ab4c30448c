"""What is built: the sources' archive, and from it the wheel, whose units can be installed."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from training_worker.cli.systemd_units import unit_sources

ROOT = Path(__file__).parents[1]
UNITS = {path.name for path in (ROOT / "systemd").iterdir()}

# Run with the wheel's files alone before the checkout's: puts the units below a folder.
INSTALL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import training_worker
from training_worker.cli.systemd_units import SOURCES, run_steps, steps_of_install
assert Path(training_worker.__file__).is_relative_to(sys.argv[1]), training_worker.__file__
assert SOURCES.is_relative_to(sys.argv[1]), SOURCES
run_steps(steps_of_install(Path(sys.argv[2]), Path("/opt/venv/bin/training-worker"), per_gpu=False), print, dry=False)
"""


def build(sources: Path, target: str, folder: Path) -> Path:
    """Build a wheel or a sources' archive, as pip does, but with the tools that are here."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources' archive, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder / "built")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def test_the_sources_archive_holds_all_that_is_listed(sources: Path) -> None:
    """Each path that pyproject.toml lists is in the checkout, and in the archive."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for path in listed:
        assert (ROOT / path.removeprefix("/")).exists(), path
        assert (sources / path.removeprefix("/")).exists(), path


def test_units_are_installed_from_a_wheel_that_was_built_from_the_sources_archive(
    sources: Path, tmp_path: Path
) -> None:
    """They are all there, and what is installed is what the checkout has."""
    with zipfile.ZipFile(build(sources, "wheel", tmp_path / "wheel")) as wheel:
        wheel.extractall(tmp_path / "site")

    assert UNITS == {path.name for path in (tmp_path / "site/training_worker/systemd").iterdir()}
    (tmp_path / "root").mkdir()
    command = [sys.executable, "-c", INSTALL, str(tmp_path / "site"), str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = (tmp_path / "root/etc/systemd/system/training-worker.service").read_text("utf-8")
    unit = (ROOT / "systemd/training-worker.service").read_text("utf-8")
    assert installed == unit.replace("/opt/training-worker/bin/training-worker", "/opt/venv/bin/training-worker")


def test_a_checkout_has_its_units_at_the_top_level() -> None:
    """Bare, or installed for editing: the package lies in the checkout, and no copy of the units lies in it."""
    assert ROOT / "systemd" == unit_sources(ROOT / "daemon/training_worker")


def test_an_installed_package_has_its_units_beside_itself(tmp_path: Path) -> None:
    """Whatever lies two folders up."""
    package = tmp_path / "site/lib/training_worker"
    (package / "systemd").mkdir(parents=True)
    (tmp_path / "site/systemd").mkdir()
    assert package / "systemd" == unit_sources(package)
