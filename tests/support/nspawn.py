"""A small Debian with real systemd, booted in a container that shares the host's network."""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
# Made once: that is a minute or two.
BASE = ROOT / ".cache" / "debian"
TRANSCRIPT = ROOT / ".cache" / "systemd-transcript.txt"
SUITE = "bookworm"
PYTHON = (3, 11)
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv"
NEEDED = ("debootstrap", "systemd-nspawn", "nsenter")
# bpf(): by it systemd enforces DeviceAllow= where control groups are of the second kind, which the container has
# whatever the host has.
NSPAWN = (
    "systemd-nspawn",
    "--quiet",
    "--boot",
    "--register=no",
    "--keep-unit",
    "--console=pipe",
    "--system-call-filter=bpf",
)
UNIFIED = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}

VENV = Path("opt/training-worker")
TRAINER = "/opt/trainer/fake_trainer.py"
# What a wheel holds, and where.
SOURCES = {
    "schemas/training_schemas": "training_schemas",
    "presets/training_presets": "training_presets",
    "daemon/training_worker": "training_worker",
    "systemd": "training_worker/systemd",
}
SCRIPT = """\
#!/opt/training-worker/bin/python
from training_worker.cli import main

main()
"""

HOSTNAME = "gpu-host-7"

BOOT_TIMEOUT = 60.0
COMMAND_TIMEOUT = 150.0
STOP_TIMEOUT = 20.0
# The exit status of this program where no container can be had: that of a skipped test in many test suites.
NOT_HERE = 77


class NoMachineError(Exception):
    """What it needs is missing here; the message names it."""


class Machine:
    """The container, while it runs."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.folder = folder
        self._process = process
        self._leader: int | None = None

    @property
    def leader(self) -> int:
        """The container's first process, as the host numbers it."""
        deadline = time.monotonic() + BOOT_TIMEOUT
        while self._leader is None:
            assert self._process.poll() is None, "the container ended while it booted"
            assert time.monotonic() < deadline, "the container has no first process"
            self._leader = next(filter(_is_systemd, _children(self._process.pid)), None)
            time.sleep(0.05)
        return self._leader

    def run(self, *command: str, status: int | None = 0) -> str:
        """Run a command in it and return its output; with ``status`` None whatever its exit status is."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--pid"]
        clean = ["env", "-i", "PATH=/usr/bin:/usr/sbin:/bin:/sbin", "LANG=C.UTF-8", "SYSTEMD_PAGER=", *command]
        done = subprocess.run(
            [*enter, *clean], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMMAND_TIMEOUT, check=False
        )
        output = done.stdout.decode()
        # A line for the shell is shown as one types it.
        line = " ".join(command[2:] if command[:2] == ("sh", "-c") else command)
        note(f"# {line}\n{output}" + (f"[exit status {done.returncode}]\n" if done.returncode else ""))
        assert status is None or done.returncode == status, f"{command}: {done.returncode}: {output}"
        return output

    def until_up(self) -> None:
        """Wait until its systemd answers and has started what it starts."""
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not re.match("running|degraded", self.run("systemctl", "is-system-running", status=None)):
            assert time.monotonic() < deadline, "the container did not boot"
            time.sleep(0.5)

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def trainers(self) -> list[int]:
        """The fake trainers that run in it, as the host numbers them."""
        space = (Path("/proc") / str(self.leader) / "ns/pid").readlink()
        return sorted(pid for pid in _processes() if _is_trainer(pid) and _space(pid) == space)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of its."""
        file = self.folder / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def stop(self) -> None:
        """End it: what it has is of a test."""
        leader = self._leader
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            if leader is not None:
                os.kill(leader, signal.SIGKILL)
            self._process.kill()
            self._process.wait()


def note(text: str) -> None:
    """Write something down for who wants to read what was done."""
    with TRANSCRIPT.open("a") as file:
        file.write(text if text.endswith("\n") else f"{text}\n")


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """A container in ``folder`` with the project installed in /opt/training-worker. Raises `NoMachineError`."""
    _make_folder(folder)
    _install_project(folder)
    TRANSCRIPT.unlink(missing_ok=True)
    with _boot(folder) as machine:
        machine.until_up()
        yield machine


def try_here() -> None:
    """Boot a Debian that has nothing of the project, once. Raises `NoMachineError` where that cannot be had."""
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above) / "root"
        _make_folder(folder)
        with _boot(folder) as machine:
            try:
                machine.until_up()
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                console = (folder.parent / "console.log").read_text(errors="replace").split("\n")
                last = next((line.strip() for line in reversed(console) if line.strip()), "")
                raise NoMachineError(f"systemd-nspawn cannot boot here: {error}: {last}") from None


@contextmanager
def _boot(folder: Path) -> Iterator[Machine]:
    with (folder.parent / "console.log").open("wb") as console:
        process = subprocess.Popen(
            [*NSPAWN, f"--directory={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=os.environ | UNIFIED,
        )
    machine = Machine(folder, process)
    try:
        yield machine
    finally:
        machine.stop()


def _make_folder(folder: Path) -> None:
    if os.geteuid() != 0:
        raise NoMachineError("only root can boot a container")
    for program in NEEDED:
        if shutil.which(program) is None:
            raise NoMachineError(f"no {program} is installed")
    if sys.version_info[:2] != PYTHON:
        raise NoMachineError(
            f"the container has Python 3.11, and what is installed here is not for that: {sys.version}"
        )
    _make_base()
    subprocess.run(["cp", "-a", "--reflink=auto", BASE, folder], check=True)
    # debootstrap gives it this machine's.
    (folder / "etc/hostname").write_text(f"{HOSTNAME}\n")


def _make_base() -> None:
    if BASE.is_dir():
        return
    new = BASE.with_name("debian.new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(exist_ok=True)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(new)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
        raise NoMachineError(f"debootstrap could not make a Debian: {last}")
    new.rename(BASE)


def _install_project(folder: Path) -> None:
    """What `pip install` would put there, without a network: this checkout, and what it runs on here."""
    subprocess.run(["chroot", folder, "python3", "-m", "venv", "--without-pip", f"/{VENV}"], check=True)
    packages = folder / VENV / "lib/python3.11/site-packages"
    for source, target in SOURCES.items():
        shutil.copytree(ROOT / source, packages / target, ignore=shutil.ignore_patterns("__pycache__"))
    for file in _files(_distributions("training-worker")):
        copy = packages / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(file.locate()), copy)
    script = folder / VENV / "bin/training-worker"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    trainer = folder / TRAINER.removeprefix("/")
    trainer.parent.mkdir(parents=True)
    shutil.copy2(FAKE_TRAINER, trainer)


def _distributions(name: str, seen: set[str] | None = None) -> Iterator[importlib.metadata.Distribution]:
    seen = set() if seen is None else seen
    for requirement in importlib.metadata.requires(name) or []:
        needed, _, condition = requirement.partition(";")
        found = re.match(r"[A-Za-z0-9._-]+", needed)
        if found is None or found[0] in seen or "extra" in condition:
            continue
        seen.add(found[0])
        try:
            yield importlib.metadata.distribution(found[0])
        except importlib.metadata.PackageNotFoundError:
            # Of another Python, or another system.
            continue
        yield from _distributions(found[0], seen)


def _files(distributions: Iterator[importlib.metadata.Distribution]) -> Iterator[importlib.metadata.PackagePath]:
    for distribution in distributions:
        yield from (file for file in distribution.files or [] if ".." not in file.parts and file.suffix != ".pyc")


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _is_systemd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"
    except OSError:
        return False


def _is_trainer(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return TRAINER.encode() in arguments and b"python" in arguments[0]


def _space(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return None


if __name__ == "__main__":
    try:
        try_here()
    except NoMachineError as reason:
        sys.stdout.write(f"The units are not tried under real systemd here: {reason}.\n")
        sys.exit(NOT_HERE)
