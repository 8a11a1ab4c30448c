"""What the driver reports: the real binding on a library of our own, each time in a process of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.nvml import GPU_IS_LOST, UNKNOWN, Host

ROOT = Path(__file__).parents[3]
A100 = "gpu 0 40960 GPU-1 NVIDIA A100"
RTX_4090 = "gpu 0 24564 GPU-2 NVIDIA GeForce RTX 4090"

# A library is loaded once and for all.
READ = """
import sys, msgspec
from training_worker.gpu import nvml
answer = nvml.ask(nvml.read(sys.argv[1:]))
"""
FIND = """
import msgspec
from training_worker.gpu import nvml
answer = nvml.ask(nvml.find)
"""
VERSIONS = """
import msgspec
from training_worker.gpu import nvml
answer = nvml.ask(nvml.versions)
"""
HANG = """
import asyncio, time
import msgspec
from training_worker.gpu import nvml
from training_worker.errors import TrainingWorkerError

def answer(ask):
    try:
        return ask()
    except TrainingWorkerError as error:
        return [type(error).__name__, str(error)]

async def beside():
    beats = 0
    asking = asyncio.create_task(nvml.ask_async(nvml.find, 0.5))
    while not asking.done():
        await asyncio.sleep(0.05)
        beats += 1
    await asyncio.gather(asking, return_exceptions=True)
    return beats

began = time.monotonic()
first = answer(lambda: nvml.ask(nvml.find, 0.2))
second = answer(lambda: nvml.ask(nvml.versions, 0.2))
answer = [first, second, asyncio.run(beside()) > 3, time.monotonic() - began < 5]
"""
XIDS = """
import sys, time, msgspec
from training_worker.gpu import xid
watch = xid.XidWatch(sys.argv[1:])
watch.start()
answer, ends = [], time.monotonic() + float(5 if "MIG-1" in sys.argv else 20)
while not answer and time.monotonic() < ends:
    time.sleep(0.05)
    answer += watch.heard()
time.sleep(0.2)
answer += watch.heard()
"""


def output_of(host: Host, program: str, *arguments: str) -> Any:
    """What a process on this host prints, as builtins."""
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    command = [sys.executable, "-c", f"{program}\nprint(msgspec.json.encode(answer).decode())", *arguments]
    env = host.environment | {"PYTHONPATH": path}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


SILENT: dict[str, Any] = {
    "lost": False,
    "fault": None,
    "processes": {},
    "utilisation": None,
    "temperature_c": None,
    "power_w": None,
    "energy_j": None,
    "sm_mhz": None,
    "memory_mhz": None,
    "throttled": None,
    "ecc_uncorrected": None,
    "mig": None,
}
UNREAD = SILENT | {"memory_mib": None, "free_mib": None, "processes": None}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([], SILENT | {"memory_mib": 40960, "free_mib": 40960}, id="tells-nothing-but-memory"),
        pytest.param(["held 1000"], {"memory_mib": 40960, "free_mib": 39960}, id="memory"),
        pytest.param(["process 71 300", "process 72 5"], {"processes": {"71": 300, "72": 5}}, id="processes"),
        pytest.param(["temperature 83"], {"temperature_c": 83}, id="temperature"),
        pytest.param(["power 388250"], {"power_w": 388.25}, id="power"),
        pytest.param(["energy 7200500"], {"energy_j": 7200.5}, id="energy"),
        pytest.param(["utilisation 97"], {"utilisation": 97}, id="utilisation"),
        pytest.param(["clocks 1410 1215"], {"sm_mhz": 1410, "memory_mhz": 1215}, id="clocks"),
        pytest.param(["throttle 0"], {"throttled": []}, id="not-throttled"),
        pytest.param(["throttle 1"], {"throttled": []}, id="idle"),
        pytest.param(["throttle 68"], {"throttled": ["power cap", "hardware thermal slowdown"]}, id="throttled"),
        pytest.param(["ecc 3"], {"ecc_uncorrected": 3}, id="ecc"),
        pytest.param(["mig 4864 MIG-1"], {"mig": ["MIG-1"]}, id="mig"),
    ],
)
def test_a_gpu_is_read(host: Host, lines: list[str], expected: dict[str, Any]) -> None:
    """None is what it does not support."""
    host.describe(A100, *lines)

    reading = output_of(host, READ, "GPU-1")["GPU-1"]

    assert {name: reading[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([f"gpu {GPU_IS_LOST} 40960 GPU-1 NVIDIA A100"], {"lost": True}, id="fell-off-the-bus"),
        pytest.param(["gpu 6 40960 GPU-1 NVIDIA A100"], {"lost": True}, id="not-found"),
        pytest.param([], {"lost": True}, id="not-shown"),
        pytest.param([f"gpu {UNKNOWN} 40960 GPU-1 NVIDIA A100"], {"fault": "Unknown Error"}, id="unreadable"),
    ],
)
def test_a_gpu_that_cannot_be_read_leaves_the_others(host: Host, lines: list[str], expected: dict[str, Any]) -> None:
    """The reason is given, and nothing else."""
    host.describe(*lines, RTX_4090, "temperature 50")

    readings = output_of(host, READ, "GPU-1", "GPU-2")

    assert readings["GPU-1"] == UNREAD | {"uuid": "GPU-1"} | expected
    assert readings["GPU-2"]["temperature_c"] == 50


def test_of_a_gpu_that_mig_divides_the_instances_are_found(host: Host) -> None:
    """Each with the GPU's name, its own memory, and its part of the GPU."""
    host.describe(A100, "mig 10240 MIG-1", "mig 20480 MIG-2", RTX_4090)

    assert output_of(host, FIND) == [
        {"uuid": "MIG-1", "name": "NVIDIA A100", "memory_mib": 10240, "part": 0.25, "fault": None},
        {"uuid": "MIG-2", "name": "NVIDIA A100", "memory_mib": 20480, "part": 0.5, "fault": None},
        {"uuid": "GPU-2", "name": "NVIDIA GeForce RTX 4090", "memory_mib": 24564, "part": 1.0, "fault": None},
    ]


def test_a_gpu_that_cannot_be_read_keeps_its_place(host: Host) -> None:
    """Whoever names the others by their places means the same ones as before."""
    host.describe(f"gpu {GPU_IS_LOST} 40960 GPU-1 NVIDIA A100", RTX_4090)

    unreadable, other = output_of(host, FIND)

    assert unreadable == {
        "uuid": "unreadable-0",
        "name": "unreadable",
        "memory_mib": 0,
        "part": 1.0,
        "fault": "GPU is lost",
    }
    assert other["uuid"] == "GPU-2"


def test_an_instance_is_as_hot_as_its_gpu_and_has_its_own_memory(host: Host) -> None:
    """Energy is the whole GPU's: it is not known of one of several instances."""
    host.describe(A100, "temperature 83", "ecc 2", "energy 5000", "mig 10240 MIG-1")

    reading = output_of(host, READ, "MIG-1")["MIG-1"]

    known = {"memory_mib": 10240, "temperature_c": 83, "ecc_uncorrected": 2, "energy_j": None}
    assert {name: reading[name] for name in known} == known


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["driver 550.54.15", "cuda 12040"], {"driver": "550.54.15", "cuda": "12.4"}),
        (["driver 550.54.15"], {"driver": "550.54.15", "cuda": None}),
    ],
)
def test_the_versions_are_reported(host: Host, lines: list[str], expected: dict[str, Any]) -> None:
    """CUDA's is a number on the wire."""
    host.describe(*lines)

    assert output_of(host, VERSIONS) == expected


def test_a_driver_that_never_answers_hangs_nobody(host: Host) -> None:
    """Each query ends in time, tasks continue meanwhile, and so does the program's end."""
    host.describe("hang", A100)
    began = time.monotonic()

    first, second, went_on, in_time = output_of(host, HANG)

    assert first == ["DriverHangsError", "the driver has not answered within 0.2 s"]
    assert second == first
    assert went_on
    assert in_time
    assert time.monotonic() - began < 30


def test_an_xid_is_reported_once_and_for_its_gpu(host: Host) -> None:
    """Also if another GPU that is watched is not there."""
    host.describe(A100, RTX_4090, "xid 79")

    assert output_of(host, XIDS, "GPU-1", "GPU-2", "GPU-gone") == [["GPU-2", 79]]


@pytest.mark.parametrize(
    ("xid", "heard"),
    [("xid 79", [["MIG-1", 79], ["MIG-2", 79]]), ("xid 94 2", [["MIG-2", 94]]), ("xid 94 3", [])],
)
def test_an_xid_of_a_gpu_is_one_of_its_instances_unless_it_names_one(
    host: Host, xid: str, heard: list[list[Any]]
) -> None:
    """The driver reports it for the GPU; the third instance is nobody's that we watch."""
    host.describe(A100, "mig 10240 MIG-1", "mig 10240 MIG-2", "mig 10240 MIG-3", xid)

    assert output_of(host, XIDS, "MIG-1", "MIG-2") == heard
