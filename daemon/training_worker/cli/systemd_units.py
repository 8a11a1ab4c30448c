"""The installation of the systemd units on this host, and its undoing.

What is installed is recorded beside the settings, with a digest of each file: only an unchanged file is ever
overwritten or removed. State, settings and the user that owns them stay.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from training_worker.errors import SettingsError


def unit_sources(package: Path) -> Path:
    """Return the folder of the unit files: in the installed package, or at the top of its checkout."""
    installed = package / "systemd"
    return installed if installed.is_dir() else package.parents[1] / "systemd"


SOURCES = unit_sources(Path(__file__).parents[1])
PROGRAM = "/opt/training-worker/bin/training-worker"

UNITS = Path("etc/systemd/system")
SETTINGS = Path("etc/training-worker")
RECORD = SETTINGS / ".installed.json"
UNIT, TEMPLATE = "training-worker.service", "training-worker@.service"
COMMON = {
    "sysusers.conf": Path("etc/sysusers.d/training-worker.conf"),
    "tmpfiles.conf": Path("etc/tmpfiles.d/training-worker.conf"),
    "worker.toml.example": SETTINGS / "worker.toml.example",
    "training-worker.env.example": SETTINGS / "training-worker.env.example",
}
# Excludes whatever systemd would not read as a plain path.
PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+@-]+\Z")
# ProtectHome=yes hides them.
HOMES = tuple(Path(name) for name in ("/home", "/root", "/run/user"))

NEXT = """
What comes next, as root:
  1. write the broker's address, amqps://user:password@broker:5671/, to /etc/training-worker/amqp-url; chmod 600
  2. write /etc/training-worker/worker.toml, after worker.toml.example beside it
  3. systemctl enable --now {unit}"""
KEPT = """
The settings in /etc/training-worker, the state in /var/lib/training-worker and the user training-worker stay."""


class Step(msgspec.Struct, frozen=True):
    """One step: its description, and its action."""

    text: str
    do: Callable[[], object]


class Record(msgspec.Struct, kw_only=True):
    """The record of what was installed: the digest of each file, and the folders made for them; below the root."""

    files: dict[str, str] = {}
    folders: list[str] = []


def steps_of_install(root: Path, program: Path, *, per_gpu: bool) -> list[Step]:
    """List the steps that install the unit, for all GPUs or for one each. ``root`` is ``/`` except for an image.

    Raises `SettingsError` if another file is in the way, or systemd could not start the program.
    """
    if not PLAIN_PATH.match(str(program)) or any(program.is_relative_to(home) for home in HOMES):
        raise SettingsError(
            f"cannot install: a unit cannot start {program}; install it under {Path(PROGRAM).parents[1]}"
        )
    contents = {root / path: text for path, text in _contents(program, per_gpu=per_gpu)}
    record, written = _read(root), {path: text for path, text in contents.items() if not _is(path, text)}
    for path in written:
        if path.exists() and record.files.get(_below(root, path)) != _digest(path):
            raise SettingsError(f"cannot install: {path} is not as an install left it; move it away")
    folders = [folder for folder in _folders(root, contents) if not folder.is_dir()]
    record.files |= {_below(root, path): hashlib.sha256(text.encode()).hexdigest() for path, text in contents.items()}
    record.folders += [_below(root, folder) for folder in folders]
    return [
        *(Step(f"make {folder}", folder.mkdir) for folder in folders),
        # The first of all files: what is not recorded cannot be undone.
        Step(f"write {root / RECORD}", lambda: (root / RECORD).write_bytes(msgspec.json.encode(record))),
        *(Step(f"write {path}", _writing(path, text)) for path, text in written.items()),
        *_commands(root, ["systemd-sysusers", str(root / COMMON["sysusers.conf"])]),
        *_commands(root, ["systemd-tmpfiles", "--create", str(root / COMMON["tmpfiles.conf"])]),
        *_commands(root, ["systemctl", "daemon-reload"]),
    ]


def steps_of_undo(root: Path) -> list[Step]:
    """List the steps that undo all installs. Raises `SettingsError` while a unit is enabled or runs."""
    record = _read(root)
    if not record.files:
        raise SettingsError(f"cannot undo: {root / RECORD} records no installation")
    if units := sorted({*_enabled(root), *_active(root)}):
        raise SettingsError(f"cannot undo while units are in use; first: systemctl disable --now {' '.join(units)}")
    files = [(root / name, digest) for name, digest in record.files.items() if (root / name).exists()]
    return [
        *(
            Step(f"remove {path}", path.unlink)
            if _digest(path) == digest
            else Step(f"leave {path}: it was changed", lambda: None)
            for path, digest in files
        ),
        Step(f"remove {root / RECORD}", (root / RECORD).unlink),
        *(Step(f"remove {root / name} if it is empty", _removing(root / name)) for name in reversed(record.folders)),
        *_commands(root, ["systemctl", "daemon-reload"]),
    ]


def _contents(program: Path, *, per_gpu: bool) -> Iterator[tuple[Path, str]]:
    unit = TEMPLATE if per_gpu else UNIT
    yield UNITS / unit, (SOURCES / unit).read_text("utf-8").replace(PROGRAM, str(program))
    for name, path in COMMON.items():
        yield path, (SOURCES / name).read_text("utf-8")


def _folders(root: Path, paths: dict[Path, str]) -> list[Path]:
    """List the folders below ``root`` that the files need, each after those that it is in."""
    needed = {folder for path in paths for folder in path.parents if folder.is_relative_to(root) and folder != root}
    return sorted(needed)


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root))


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(root: Path) -> Record:
    try:
        return msgspec.json.decode((root / RECORD).read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsError(f"cannot read {root / RECORD}: {error}") from None


def _writing(path: Path, text: str) -> Callable[[], None]:
    def write() -> None:
        # Written whole or not at all: systemd may read it meanwhile.
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text, "utf-8")
        beside.chmod(0o644)
        beside.replace(path)

    return write


def _removing(folder: Path) -> Callable[[], None]:
    def remove() -> None:
        # The operator's own settings stay.
        with contextlib.suppress(OSError):
            folder.rmdir()

    return remove


def _commands(root: Path, command: list[str]) -> list[Step]:
    """Return the step of a command; none in an image, whose systemd does all this when it starts."""
    if root != Path("/"):
        return []

    def run() -> None:
        try:
            subprocess.run(command, check=True)  # noqa: S603 - from the table above
        except (OSError, subprocess.CalledProcessError) as error:
            raise SettingsError(f"cannot run {' '.join(command)}: {error}") from None

    return [Step(" ".join(command), run)]


def _enabled(root: Path) -> list[str]:
    links = (root / UNITS).glob("*.wants/training-worker*.service")
    return [
        connection.name
        for connection in links
        if connection.name == UNIT or connection.name.startswith("training-worker@")
    ]


def _active(root: Path) -> list[str]:
    if root != Path("/"):
        return []
    command = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating,reloading"]
    try:
        shown = subprocess.run([*command, UNIT, "training-worker@*"], capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return []
    return [line.split()[0] for line in shown.stdout.splitlines() if line.strip()]


def run_steps(steps: list[Step], show: Callable[[str], None], *, dry: bool) -> None:
    """Show and do each step, or only show it. Raises `SettingsError` where one cannot be done."""
    for step in steps:
        show(step.text)
        if dry:
            continue
        try:
            step.do()
        except OSError as error:
            hint = "" if os.geteuid() == 0 else "; run it as root"
            raise SettingsError(f"cannot {step.text}: {error.strerror}{hint}") from None


def install_units(root: Path, *, per_gpu: bool, dry_run: bool, undo: bool) -> None:
    """Show each step, and take it unless ``dry_run``."""
    program = Path(sys.prefix, "bin", "training-worker")
    steps = steps_of_undo(root) if undo else steps_of_install(root, program, per_gpu=per_gpu)
    run_steps(steps, print, dry=dry_run)
    unit = "training-worker@0 training-worker@1 ..." if per_gpu else "training-worker"
    print(KEPT if undo else NEXT.format(unit=unit))
