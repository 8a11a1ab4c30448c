"""The checks of the host: its GPUs, memory, disks and clock."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from training_presets.disk import DiskNeed, disk_need
from training_presets.planner import plan_job
from training_schemas.jobs import TrainingType
from training_worker.attempts.engine_selection import served_types
from training_worker.client.job_builder import make_job
from training_worker.doctor.findings import Finding, State
from training_worker.doctor.gpus import HostGpus
from training_worker.errors import SettingsError
from training_worker.gpu.devices import GpuDevice
from training_worker.settings import Settings
from training_worker.storage.disk_usage import GIB, existing, free_bytes

GROUP = "host"
MEMORY = Path("/proc/meminfo")
# Trainers read weights layer by layer, and move them to the GPU; with less memory than this they swap.
LEAST_MEMORY = 8 * GIB
# A clock before this was never set: certificates, ledger times and the ages of files depend on it. Unix seconds, 2025.
EARLIEST = 1_735_689_600
LIMIT = 10.0
SEE_GPUS = "nvidia-smi  # must list the GPUs; install the driver if not"
CHOOSE_GPUS = "nvidia-smi -L  # the GPUs of this host, for gpus, only_gpus and gpus_per_job in the settings"


def check(settings: Settings, host: HostGpus) -> Iterator[Finding]:
    """Check the host, whose GPUs were already read."""
    yield _devices(host)
    yield _memory()
    needs = {kind: _usual_need(kind) for kind in TrainingType if kind in served_types(settings)}
    yield _disk("state", settings.state_dir, {kind: need.state for kind, need in needs.items()})
    for number, root in enumerate(settings.output_roots):
        yield _disk(f"output{number}", root, {kind: need.output for kind, need in needs.items()})
    yield clock(time.time(), _synchronised())


def _devices(host: HostGpus) -> Finding:
    devices = host.devices
    if isinstance(host.error, SettingsError):
        return _finding("cards", State.ERROR, str(host.error), CHOOSE_GPUS)
    if host.error is not None:
        return _finding("cards", State.ERROR, str(host.error), SEE_GPUS)
    if all(device.simulated for device in devices):
        found = (
            f"NVML shows none; {_named(devices)} simulated by the settings, on which tiny models are trained by the CPU"
        )
        return _finding("cards", State.WARNING, found, SEE_GPUS)
    if host.sick:
        reasons = "; ".join(f"{uuid} gets no jobs: {reason}" for uuid, reason in host.sick.items())
        return _finding("cards", State.ERROR, f"{_named(devices)}; {reasons}", "nvidia-smi -q  # the state of each GPU")
    small = [device for device in devices if device.tier is None]
    if small:
        return _finding(
            "cards", State.WARNING, f"{_named(devices)}; too small for any job: {_named(small)}", CHOOSE_GPUS
        )
    return _finding("cards", State.OK, _named(devices))


def _named(devices: list[GpuDevice]) -> str:
    """List the slots, each with its GPUs."""
    return ", ".join(
        f"{device.name} with {device.memory_mib} MiB"
        if device.count == 1
        else f"{device.count} {device.name} together, each with {device.memory_mib} MiB"
        for device in devices
    )


def _memory() -> Finding:
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are available"
    if free < LEAST_MEMORY:
        fix = "ps --sort=-rss -eo pid,rss,comm | head  # what uses it"
        return _finding("memory", State.WARNING, f"{found}; trainers need {LEAST_MEMORY / GIB:.0f}", fix)
    return _finding("memory", State.OK, found)


def _usual_need(kind: TrainingType) -> DiskNeed:
    """Return the disk need of a job of this type with default settings."""
    plan = plan_job(make_job(kind, job_id="doctor", dataset_path="/datasets/x", output_path="/models/x"))
    settings = plan.parameters
    return disk_need(plan.workload, keep_checkpoints=settings.keep_checkpoints, sample_every=settings.sample_every)


def _disk(name: str, path: Path, needs: dict[TrainingType, int]) -> Finding:
    name = f"disk.{name}"
    owner = f"install -d -o training-worker -g training-worker {path}"
    try:
        there, free = existing(path), free_bytes(path)
    except OSError as error:
        return _finding(name, State.ERROR, f"{path}: {error}", owner)
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        return _finding(name, State.ERROR, f"{path} cannot be written by this user", owner)
    found = f"{free / GIB:.1f} GiB are free at {path}"
    short = {kind: need for kind, need in needs.items() if need > free}
    if short:
        kinds = ", ".join(f"{kind} ({need / GIB:.1f})" for kind, need in short.items())
        state = State.ERROR if len(short) == len(needs) else State.WARNING
        return _finding(name, state, f"{found}: too little for {kinds}", f"du -xh -d 2 {there} | sort -h | tail")
    return _finding(name, State.OK, found)


def clock(now: float, synchronised: bool | None) -> Finding:
    """Judge the clock by the time (unix seconds)."""
    if now < EARLIEST:
        return _finding("clock", State.ERROR, f"it was never set: {time.ctime(now)}", "timedatectl set-ntp true")
    if synchronised is False:
        return _finding("clock", State.WARNING, "not synchronized with a time server", "timedatectl set-ntp true")
    how = "synchronized with a time server" if synchronised else "whether a time server keeps it is not known"
    return _finding("clock", State.OK, f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(now))}, {how}")


def _synchronised() -> bool | None:
    program = shutil.which("timedatectl")
    if program is None:
        return None
    command = [program, "show", "--property", "NTPSynchronized", "--value"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _finding(name: str, state: State, found: str, fix: str | None = None) -> Finding:
    return Finding(group=GROUP, name=name, state=state, found=found, fix=fix)
