"""What systemd makes of the units, and what they let a program do."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.nspawn import Machine
from tests.support.unit_host import PROGRAM, UNIT, Host

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
GPU_UNIT = "training-worker@0.service"
EXPOSURE = 2.5

OPENER = "/opt/trainer/open_nodes.py"
# As the unit's user, with all of its sandbox, before the daemon: what becomes of opening each node.
OPENER_TEXT = """\
import errno, os, sys

for name in sys.argv[1:]:
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDWR))
        output = "opened"
    except OSError as error:
        output = errno.errorcode[error.errno]
    print(name, output)
"""
# Major and minor numbers, mode and group. Two ways in which a driver is set up to give them away.
NODES = {
    "nvidiactl": (195, 255, "666", "root"),
    "nvidia-modeset": (195, 254, "666", "root"),
    "nvidia0": (195, 0, "660", "video"),
    "nvidia-uvm": (508, 0, "666", "root"),
    "nvidia-uvm-tools": (508, 1, "666", "root"),
    "nvidia-caps/nvidia-cap1": (509, 1, "660", "render"),
    "other": (240, 7, "666", "root"),
    "fuse": (10, 229, "666", "root"),
}
CLOSED = ("systemd-run", "--wait", "--pipe", "--quiet", "--property=DevicePolicy=closed")
FORBIDDEN = ("other", "fuse")
# What a host's driver adds to /proc/devices; the second and the third number are others on each host.
DRIVER = "195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n508 nvidia-uvm\n509 nvidia-caps\n"


@pytest.fixture
def units(machine: Machine) -> None:
    """Both kinds of units."""
    machine.run(PROGRAM, "install")
    machine.run(PROGRAM, "install", "--per-gpu")


@pytest.mark.parametrize("unit", [UNIT, GPU_UNIT])
def test_verify_is_silent(machine: Machine, units: None, unit: str) -> None:
    """No output, and status 0, of the units as they are installed."""
    assert machine.run("systemd-analyze", "verify", unit) == ""


@pytest.mark.parametrize("unit", [UNIT, GPU_UNIT])
def test_the_exposure_is_small_and_documented(machine: Machine, units: None, unit: str) -> None:
    """At most 2.5; and docs/systemd.md has the table that systemd gives, line by line."""
    command = ["systemd-analyze", "security", "--no-pager", f"--threshold={int(EXPOSURE * 10)}", unit]
    table = machine.run(*command).replace(unit, UNIT)

    exposure = re.search(r"Overall exposure level for .*: ([\d.]+) ", table)
    assert exposure is not None
    assert float(exposure[1]) <= EXPOSURE
    page = (ROOT / "docs" / "systemd.md").read_text()
    shown = page.partition("  NAME ")[2].partition("```")[0]
    assert _fields(f"NAME {shown}") == _fields(table)


def _fields(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip()]


@pytest.fixture
def driver(machine: Machine, units: None, missing: Callable[[str], NoReturn]) -> Iterator[None]:
    """The device nodes of a GPU and of other things, and a list of drivers that has NVIDIA's."""
    machine.write(OPENER, OPENER_TEXT)
    machine.run("mkdir", "-p", "/dev/nvidia-caps")
    for name, (major, minor, mode, group) in NODES.items():
        node = f"/dev/{name}"
        machine.run("sh", "-c", f"rm -f {node} && mknod {node} c {major} {minor} && chmod {mode} {node}")
        machine.run("chgrp", group, node)
    edit = f"sed '/^Character devices:/a {DRIVER.strip()}' /proc/devices > /run/devices".replace("\n", "\\n")
    machine.run("sh", "-c", f"{edit} && mount --bind /run/devices /proc/devices")
    try:
        # Whether control groups hold anybody here: by what has nothing to do with the unit.
        if "EPERM" not in machine.run(*CLOSED, "python3", OPENER, "nvidiactl"):
            missing("systemd cannot enforce DeviceAllow= in the container: no BPF")
        yield
    finally:
        machine.run("umount", "/proc/devices")
        machine.run("sh", "-c", "rm -rf /dev/nvidia* /dev/other /dev/fuse")


@pytest.mark.broker
@pytest.mark.parametrize(("unit", "state"), [(UNIT, ""), (GPU_UNIT, "/0")])
async def test_the_nodes_of_a_gpu_can_be_opened_and_no_others(host: Host, driver: None, unit: str, state: str) -> None:
    """No driver answers: a node that may be opened gives ENXIO, which is the kernel's error and not the sandbox's."""
    machine = host.machine
    machine.write(
        f"/etc/systemd/system/{unit}.d/nodes.conf",
        f"[Service]\nExecStartPre=/bin/sh -c 'python3 {OPENER} {' '.join(['null', *NODES])} > $HOME/nodes.txt'\n",
    )
    machine.run("systemctl", "daemon-reload")
    try:
        host.start(unit)
        output = machine.run("cat", f"/var/lib/training-worker{state}/nodes.txt")
    finally:
        machine.run("systemctl", "stop", unit)
        machine.run("rm", "-r", f"/etc/systemd/system/{unit}.d")
        machine.run("systemctl", "daemon-reload")

    opened = dict(line.split() for line in output.splitlines())
    allowed = dict.fromkeys(set(NODES) - set(FORBIDDEN), "ENXIO")
    assert opened == {"null": "opened"} | allowed | dict.fromkeys(FORBIDDEN, "EPERM")
