"""The plan: what a valid job will be trained with, and the least card that it may be trained on."""

import msgspec

from training_presets.presets import Preset, default_preset, presets
from training_presets.tiers import MINIMUM_TIERS
from training_schemas.jobs import CostOptimization, MemoryTier, ModelFamily, TrainingJob, TrainingType
from training_schemas.progress import Fault
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_schemas.validation import InvalidMessageError, convert_strictly

PARAMETERS: dict[ModelFamily, type[FluxLoraParameters | SdxlParameters]] = {
    ModelFamily.FLUX: FluxLoraParameters,
    ModelFamily.SDXL: SdxlParameters,
}

# Fields of a job that set the parameter of the same name.
JOB_PARAMETERS = ("resolution", "batch_size", "learning_rate", "max_train_steps", "lora_rank")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A job's settings, resolved, and the tier of the queue that it waits in."""

    training_type: TrainingType
    tier: MemoryTier
    preset: str
    parameters: FluxLoraParameters | SdxlParameters

    @property
    def family(self) -> ModelFamily:
        """The family of the job's base model."""
        return self.training_type.family


def plan_job(job: TrainingJob) -> Plan:
    """Resolve a job: its preset, then its own fields, then its overrides. Raises `InvalidMessageError`.

    The tier is the highest of what the training type needs, what the preset is made for and what the job asks for.
    """
    faults: list[Fault] = []
    preset = _preset_of(job, faults)
    tier = _tier_of(job, preset, faults)
    parameters = _parameters_of(job, preset, faults)
    if parameters is None or faults:
        raise InvalidMessageError(faults)
    return Plan(training_type=job.training_type, tier=tier, preset=preset.name, parameters=parameters)


def _preset_of(job: TrainingJob, faults: list[Fault]) -> Preset:
    family = job.training_type.family
    known = {name: preset for name, preset in presets().items() if preset.family is family}
    if job.preset in known:
        return known[job.preset]
    if job.preset is not None:
        reason = f"unknown preset {job.preset!r} for {job.training_type}; one of {', '.join(known)}"
        faults.append(Fault(path="preset", reason=reason))
    tier = max(job.gpu_memory_tier or MemoryTier.GB8, MINIMUM_TIERS[job.training_type], key=_gigabytes)
    return default_preset(family, tier, job.cost_optimization or CostOptimization.BALANCED)


def _tier_of(job: TrainingJob, preset: Preset, faults: list[Fault]) -> MemoryTier:
    needed = max(MINIMUM_TIERS[job.training_type], preset.tier or MemoryTier.GB8, key=_gigabytes)
    asked = job.gpu_memory_tier or needed
    if asked.gigabytes < needed.gigabytes:
        reason = f"{job.training_type} with preset {preset.name} requires at least {needed}, not {asked}"
        faults.append(Fault(path="gpuMemoryTier", reason=reason))
    return asked


def _parameters_of(job: TrainingJob, preset: Preset, faults: list[Fault]) -> FluxLoraParameters | SdxlParameters | None:
    names = {field.name: field.encode_name for field in msgspec.structs.fields(TrainingJob)}
    fields = {names[name]: getattr(job, name) for name in JOB_PARAMETERS if getattr(job, name) is not None}
    try:
        return convert_strictly(preset.parameters | fields | job.config_overrides, PARAMETERS[preset.family])
    except InvalidMessageError as error:
        # The job's own fields are in range already, and presets are tested: what is left came from the overrides.
        faults += [Fault(path=f"configOverrides.{fault.path}", reason=fault.reason) for fault in error.faults]
        return None


def _gigabytes(tier: MemoryTier) -> int:
    return tier.gigabytes
