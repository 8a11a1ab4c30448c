"""The choice at the claim: of all settings that give the planned result, those that cost least on this slot's GPU."""

import msgspec

from training_presets.fastest import Before, Choice, TargetGpu, choose
from training_presets.planner import DoesNotFitError, Plan
from training_schemas.jobs import EngineName
from training_schemas.progress import FailureReason
from training_schemas.selftest import GpuRates, SelfTest
from training_schemas.spec import PARAMETERS, Execution, RunSpec
from training_schemas.validation import convert_strictly
from training_worker.attempts.run_history import resume_point
from training_worker.errors import AttemptError
from training_worker.gpu.devices import GpuDevice, Room
from training_worker.gpu.nvml import SEPARATOR
from training_worker.ledger.job_history import JobHistory
from training_worker.selftest.remembered import Remembered
from training_worker.settings import SelfTestMode, Settings

# What a later attempt keeps of the one whose checkpoint it resumes, so that it goes on exactly: by their wire names.
KEPT = ("quantization", "batchSize", "gradientAccumulationSteps", "optimizer")
# Its speed is that of no GPU, so nothing is chosen by it.
NOBODY_KNOWS = "simulated"


def choice_for(plan: Plan, before: JobHistory, room: Room, engine: EngineName, settings: Settings) -> Choice:
    """What to train with on a GPU with so much free memory, after what has happened before. Raises `AttemptError`."""
    device = room.device
    gpu = TargetGpu(
        name=NOBODY_KNOWS if device.simulated else device.name,
        memory_mib=device.memory_mib,
        free_mib=room.free_mib,
        rates=self_test_rates(device, settings, engine),
        attention_kernels=execution_for(device, settings, engine).attention_kernels,
        cards=() if device.simulated else tuple(settings.cards),
        engine=engine,
    )
    try:
        return choose(plan, gpu, before_of(plan, before))
    except DoesNotFitError as error:
        raise AttemptError(FailureReason.HOST_UNFIT, f"cannot train on this card: the job {error}") from None


def before_of(plan: Plan, before: JobHistory) -> Before:
    """What of a job's history a choice depends on."""
    saved = resume_point(before)
    if saved is None or saved.settings is None:
        return Before(out_of_memory=before.out_of_memory, steps=0 if saved is None else saved.step)
    first = msgspec.to_builtins(plan.parameters) | saved.settings
    return Before(
        out_of_memory=before.out_of_memory,
        first=convert_strictly(first, PARAMETERS[plan.family]),
        steps=saved.step,
    )


def kept_settings(spec: RunSpec) -> dict[str, object]:
    """What of a run's settings travels with its checkpoints."""
    return {name: spec.parameters[name] for name in KEPT if name in spec.parameters}


def execution_for(device: GpuDevice, settings: Settings, engine: EngineName = EngineName.DIFFUSERS) -> Execution:
    """With kernels of attention that are right on each of a slot's GPUs, the fastest first; the default untested."""
    known = [test.attention for test in self_tests(device, settings, engine)]
    right = tuple(kernel for kernel in known[0] if all(kernel in kernels for kernels in known)) if known else ()
    return Execution(attention_kernels=right) if right else Execution()


def self_test_rates(device: GpuDevice, settings: Settings, engine: EngineName) -> GpuRates | None:
    """How fast the slot's first GPU was in its self-test; all of a slot's are of one kind."""
    tests = self_tests(device, settings, engine)
    return tests[0].rates if tests else None


def self_tests(device: GpuDevice, settings: Settings, engine: EngineName) -> list[SelfTest]:
    """The self-tests of a slot's GPUs; none where one of them has none."""
    if settings.self_test is SelfTestMode.OFF:
        return []
    remembered = Remembered(settings.state_dir)
    tests = [remembered.find(gpu, engine) for gpu in device.uuid.split(SEPARATOR)]
    return [test for test in tests if test is not None] if None not in tests else []
