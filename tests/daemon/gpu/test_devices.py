"""The GPUs of a host: real ones by NVML's real binding, stand-ins only where there is no driver at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, LIBRARY, UNKNOWN, Host

from training_schemas.events import Gpu
from training_worker.errors import SettingsError
from training_worker.gpu.devices import GpuDevice, grouped

ROOT = Path(__file__).parents[3]
STAND_IN = "Stand-in:8192MiB"
RTX_4090 = "gpu 0 24564 GPU-4090 NVIDIA GeForce RTX 4090"

# In a process of its own: a library is loaded once and for all.
PROGRAM = """
import json, sys
import msgspec
from training_worker.gpu.devices import find_gpus
from training_worker.errors import TrainingWorkerError
stand_ins, prices = json.loads(sys.argv[1])
try:
    answer = [gpu for gpu in find_gpus(stand_ins, prices)]
except TrainingWorkerError as error:
    answer = [type(error).__name__, str(error)]
print(msgspec.json.encode(answer).decode())
"""


ROOM = """
import msgspec
from training_worker.gpu.devices import find_gpus, grouped, room_on
gpus = find_gpus(["Stand-in:8192MiB"], {})
(gpu,) = grouped(gpus, len(gpus))
HOOK
print(room_on(gpu).free_mib)
"""


def find(environment: dict[str, str], stand_ins: list[str], prices: dict[str, float] | None = None) -> Any:
    """The GPUs that a process finds, as builtins; or the name of the error and its message."""
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    command = [sys.executable, "-c", PROGRAM, json.dumps([stand_ins, prices or {}])]
    ended = subprocess.run(command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_gpu_is_described_as_nvml_gives_it(host: Host) -> None:
    """UUID, name and MiB come from the driver, the price from the catalogue, and nothing is simulated."""
    host.describe(RTX_4090)

    assert find(host.environment, []) == [
        {
            "uuid": "GPU-4090",
            "name": "NVIDIA GeForce RTX 4090",
            "memory_mib": 24564,
            "simulated": False,
            "usd_per_hour": 0.6,
            "count": 1,
            "fault": None,
        }
    ]


def test_eight_gpus_are_found_in_the_drivers_order(host: Host) -> None:
    """Each has a UUID of its own, by which its trainer will be pointed at it and no other."""
    host.describe(*(f"gpu 0 81559 GPU-{number} NVIDIA H100 80GB HBM3" for number in range(8)))

    assert [device["uuid"] for device in find(host.environment, [])] == [f"GPU-{number}" for number in range(8)]


def test_gpus_of_one_host_may_differ(host: Host) -> None:
    """The price that the operator set is that of the one GPU it names."""
    host.describe(RTX_4090, "gpu 0 8188 GPU-4060 NVIDIA GeForce RTX 4060")

    found = find(host.environment, [], {"RTX 4060": 0.25})

    assert [(device["uuid"], device["memory_mib"], device["usd_per_hour"]) for device in found] == [
        ("GPU-4090", 24564, 0.6),
        ("GPU-4060", 8188, 0.25),
    ]


def test_a_real_gpu_wins_over_stand_ins(host: Host) -> None:
    """Stand-ins that were left in the settings do no harm on a host with a GPU."""
    host.describe(RTX_4090)

    assert [device["uuid"] for device in find(host.environment, [STAND_IN])] == ["GPU-4090"]


@pytest.mark.parametrize("line", ["count 0", f"init {DRIVER_NOT_LOADED}"])
def test_without_a_gpu_or_a_driver_the_stand_ins_count(host: Host, line: str) -> None:
    """A host without a GPU trains on what its settings simulate, and every event will be marked as simulated."""
    host.describe(line)

    found = find(host.environment, [STAND_IN, "Other:81920MiB"], {"Stand-in": 2.0})

    assert found == [
        {
            "uuid": "SIMULATED-0",
            "name": "Stand-in",
            "memory_mib": 8192,
            "simulated": True,
            "usd_per_hour": 2.0,
            "count": 1,
            "fault": None,
        },
        {
            "uuid": "SIMULATED-1",
            "name": "Other",
            "memory_mib": 81920,
            "simulated": True,
            "usd_per_hour": None,
            "count": 1,
            "fault": None,
        },
    ]


def test_without_the_drivers_library_the_stand_ins_count(tmp_path: Path) -> None:
    """A library that cannot be loaded is no library."""
    (tmp_path / LIBRARY).touch()

    found = find(dict(os.environ) | {"LD_LIBRARY_PATH": str(tmp_path)}, [STAND_IN])

    assert [device["uuid"] for device in found] == ["SIMULATED-0"]


@pytest.mark.parametrize("line", ["count 0", f"init {DRIVER_NOT_LOADED}"])
def test_a_host_without_any_gpu_is_an_error_that_names_what_to_set(host: Host, line: str) -> None:
    """Neither NVML nor the settings know a GPU: the operator has to act."""
    host.describe(line)

    name, message = find(host.environment, [])

    assert name == "NoGpuError"
    assert "`gpus`" in message


def test_a_broken_driver_is_an_error_and_not_a_host_without_gpus(host: Host) -> None:
    """A driver that is there and does not work is no reason to train on a stand-in."""
    host.describe(f"init {UNKNOWN}", RTX_4090)

    name, message = find(host.environment, [STAND_IN])

    assert (name, message) == ("NoGpuError", "cannot start: NVML: Unknown Error")


LOST = f"gpu {GPU_IS_LOST} 24564 GPU-1 NVIDIA GeForce RTX 4090"


@pytest.mark.parametrize("lines", [[f"count {UNKNOWN}", RTX_4090], [LOST]])
def test_a_driver_that_breaks_after_its_start_is_the_same_error(host: Host, lines: list[str]) -> None:
    """With a status for the operator, not a traceback; also where the only GPU has fallen off the bus."""
    host.describe(*lines)

    name, message = find(host.environment, [STAND_IN])

    assert name == "NoGpuError"
    assert message.startswith("cannot start: NVML: ")


def test_a_gpu_that_fell_off_the_bus_does_not_keep_the_others_from_work(host: Host) -> None:
    """It keeps its place, is worth nothing, and no job can be given to it."""
    host.describe(LOST, RTX_4090)

    lost, other = find(host.environment, [STAND_IN])

    assert (lost["fault"], lost["memory_mib"], lost["usd_per_hour"]) == ("GPU is lost", 0, None)
    assert (other["uuid"], other["fault"]) == ("GPU-4090", None)


@pytest.mark.parametrize("text", ["RTX 4090:24564", ":24564MiB", "RTX 4090:0MiB", "a:b:1MiB"])
def test_a_stand_in_of_another_form_is_an_error_that_names_its_place(host: Host, text: str) -> None:
    """The message names the setting, the entry and the form that was expected."""
    host.describe(f"init {DRIVER_NOT_LOADED}")

    name, message = find(host.environment, [STAND_IN, text])

    assert name == "SettingsError"
    assert message.endswith(f"gpus[1]: expected 'NAME:MEMORYMiB', got {text!r}")


def test_a_gpu_too_small_for_any_job_is_described_without_a_tier() -> None:
    """It is shown in the worker's events, and serves no queue."""
    device = GpuDevice(uuid="GPU-1", name="GT 1030", memory_mib=2048, simulated=False, usd_per_hour=None)

    assert device.describe() == Gpu(uuid="GPU-1", name="GT 1030", memory_mib=2048, tier=None)


def simulated(name: str, number: int, price: float | None = 1.5) -> GpuDevice:
    """One GPU of a host."""
    return GpuDevice(uuid=f"GPU-{number}", name=name, memory_mib=24564, simulated=True, usd_per_hour=price)


def test_equal_gpus_are_put_together_in_their_order() -> None:
    """A group costs what its GPUs cost, and is named as CUDA names several; its memory is that of each."""
    devices = [simulated("A", 0), simulated("B", 1, None), simulated("A", 2), simulated("B", 3, None)]

    first, second = grouped(devices, 2)

    assert (first.uuid, first.count, first.memory_mib, first.usd_per_hour) == ("GPU-0,GPU-2", 2, 24564, 3.0)
    assert (second.uuid, second.usd_per_hour) == ("GPU-1,GPU-3", None)
    assert first.describe().count == 2
    assert grouped(devices, 1) == devices


def test_a_gpu_that_is_left_over_is_an_error_that_counts() -> None:
    """It would be idle for ever, and nobody would know why."""
    with pytest.raises(SettingsError, match="gpus_per_job is 2, and 3 of A are not a multiple"):
        grouped([simulated("A", number) for number in range(3)], 2)


def free_mib(environment: dict[str, str], hook: str = "") -> int:
    """How much of the host's one GPU a process finds free."""
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    command = [sys.executable, "-c", ROOM.replace("HOOK", hook)]
    ended = subprocess.run(command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return int(ended.stdout.splitlines()[-1])


def test_what_a_stranger_holds_of_a_gpu_is_not_free(host: Host) -> None:
    """By the driver, at the moment of asking."""
    host.describe(RTX_4090, "held 20000")

    assert free_mib(host.environment) == 4564


def test_of_several_gpus_the_fullest_counts(host: Host) -> None:
    """Each holds as much of the job as the others."""
    host.describe(RTX_4090, "gpu 0 24564 GPU-2 NVIDIA GeForce RTX 4090", "held 20000")

    assert free_mib(host.environment) == 4564


HANGS = """
import os
from functools import partial
from training_worker.gpu import nvml
nvml.ask = partial(nvml.ask, limit=0.2)
with open(os.environ["FAKE_NVML"], "a") as file:
    file.write("hang")
try:
    room_on(gpu)
except nvml.DriverHangsError:
    print(-1)
    sys.exit()
"""


def test_a_driver_that_does_not_answer_is_no_room(host: Host) -> None:
    """A job that is put on such a GPU would hang as well."""
    host.describe(RTX_4090)

    assert free_mib(host.environment, f"import sys{HANGS}") == -1


def test_all_of_a_gpu_counts_where_the_driver_does_not_report_its_free_memory(host: Host) -> None:
    """A GPU that it does not find any more, or a stand-in that it has never known."""
    host.describe(RTX_4090, "held 20000")

    assert free_mib(host.environment, 'gpu = msgspec.structs.replace(gpu, uuid="GPU-gone")') == 24564
    host.describe("count 0")
    assert free_mib(host.environment) == 8192
