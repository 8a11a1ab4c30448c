"""The environment variables that a trainer gets: a closed list, and its own GPUs."""

import os

from training_worker.gpu.devices import GpuDevice

# What a trainer needs of the daemon's environment. Everything else is withheld, above all secrets.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")


def bare_environment() -> dict[str, str]:
    """Return the environment of a program with an engine's interpreter: no model hubs, none of our settings."""
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | own


def trainer_environment(device: GpuDevice) -> dict[str, str]:
    """Return the environment of a trainer: bare, with its own GPUs and no other."""
    return bare_environment() | {"CUDA_VISIBLE_DEVICES": "" if device.simulated else device.uuid}
