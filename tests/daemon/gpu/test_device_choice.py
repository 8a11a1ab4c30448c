"""A daemon for some of a host's GPUs."""

import pytest

from training_worker.errors import SettingsError
from training_worker.gpu.devices import GpuDevice, chosen, worker_gpus
from training_worker.settings import Settings

GPUS = [
    GpuDevice(uuid=f"GPU-{letter}", name="GpuDevice", memory_mib=24_564, simulated=False, usd_per_hour=None)
    for letter in "abc"
]


@pytest.mark.parametrize(
    ("names", "uuids"),
    [
        ([], ["GPU-a", "GPU-b", "GPU-c"]),
        (["1"], ["GPU-b"]),
        (["GPU-c"], ["GPU-c"]),
        (["2", "GPU-a", "0"], ["GPU-a", "GPU-c"]),
    ],
)
def test_gpus_are_named_by_uuid_or_index(names: list[str], uuids: list[str]) -> None:
    """In the host's order, each once; all of them if none is named."""
    assert [device.uuid for device in chosen(GPUS, names)] == uuids


@pytest.mark.parametrize("name", ["3", "-1", "GPU-x", ""])
def test_a_gpu_that_is_not_there_is_refused(name: str) -> None:
    """The message has what was requested, and what there is."""
    with pytest.raises(SettingsError, match=f"only_gpus names '{name}', and this host has GPU-a, GPU-b, GPU-c"):
        chosen(GPUS, ["0", name])


def test_gpus_are_chosen_before_they_are_put_together() -> None:
    """So that four of a host's GPUs can be two slots of two, and the rest another daemon's."""
    settings = Settings(gpus=["A:8192MiB"] * 6, only_gpus=["0", "1", "2", "4"], gpus_per_job=2)

    slots = worker_gpus(settings)

    assert [device.uuid for device in slots] == ["SIMULATED-0,SIMULATED-1", "SIMULATED-2,SIMULATED-4"]
