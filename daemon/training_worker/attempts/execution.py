"""How a GPU is to compute a step, by what its self-test found."""

from training_schemas.jobs import EngineName
from training_schemas.spec import Execution
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.nvml import SEPARATOR
from training_worker.selftest.remembered import Remembered
from training_worker.settings import SelfTestMode, Settings


def execution_for(device: GpuDevice, settings: Settings, engine: EngineName = EngineName.DIFFUSERS) -> Execution:
    """With kernels of attention that are right on each of a slot's GPUs, the fastest first; the default untested."""
    if settings.self_test is SelfTestMode.OFF:
        return Execution()
    remembered = Remembered(settings.state_dir)
    tests = [remembered.find(gpu, engine) for gpu in device.uuid.split(SEPARATOR)]
    known = [test.attention for test in tests if test is not None]
    if len(known) < len(tests):
        return Execution()
    right = tuple(kernel for kernel in known[0] if all(kernel in kernels for kernels in known))
    return Execution(attention_kernels=right) if right else Execution()
