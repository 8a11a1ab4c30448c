"""The kernels of each GPU, as its last self-test found them; doctor itself puts nothing on a GPU."""

from collections.abc import Iterator

from training_schemas.events import GpuKernels
from training_schemas.jobs import EngineName
from training_schemas.selftest import SelfTest
from training_worker.doctor.findings import Finding, State
from training_worker.doctor.gpus import HostGpus
from training_worker.gpu.nvml import SEPARATOR
from training_worker.selftest.gpu_tests import described
from training_worker.selftest.program import programs
from training_worker.selftest.remembered import Remembered
from training_worker.settings import SelfTestMode, Settings

GROUP = "kernels"
TEST = "training-worker selftest  # tries them again; other versions of torch or of the driver may be right"
SWITCH = 'self_test = "GPUs" in the settings'


def check(settings: Settings, host: HostGpus) -> Iterator[Finding]:
    """Say what is remembered of each GPU in each engine's interpreter."""
    if settings.self_test is SelfTestMode.OFF:
        found = "the self-test is switched off: a kernel that is broken here is used"
        yield Finding(group=GROUP, name="selftest", state=State.WARNING, found=found, fix=SWITCH)
        return
    remembered = Remembered(settings.state_dir)
    tested_here = settings.self_test is SelfTestMode.CPU
    devices = [device for device in host.devices if tested_here or not device.simulated]
    for gpu in [uuid for device in devices for uuid in device.uuid.split(SEPARATOR)]:
        for engine in programs(settings):
            yield _of_gpu(gpu, engine, remembered.find(gpu, engine))


def _of_gpu(gpu: str, engine: EngineName, test: SelfTest | None) -> Finding:
    if test is None:
        return _finding(engine, State.OK, f"{gpu}: not tested yet; the daemon does it at its start")
    told = described(gpu, engine, test)
    if not test.attention:
        found = f"{gpu}: no kernel of attention is right, so it gets no jobs: {_listed(told)}"
        return _finding(engine, State.ERROR, found, TEST)
    right = ", ".join(told.attention)
    if not told.faulty:
        return _finding(engine, State.OK, f"{gpu}: attention by {right}; nothing is wrong")
    return _finding(engine, State.WARNING, f"{gpu}: attention by {right}; not right: {_listed(told)}", TEST)


def _listed(told: GpuKernels) -> str:
    return ", ".join(f"{name} ({verdict})" for name, verdict in told.faulty.items()) or "there are none"


def _finding(engine: EngineName, state: State, found: str, fix: str | None = None) -> Finding:
    return Finding(group=GROUP, name=f"kernels.{engine}", state=state, found=found, fix=fix)
