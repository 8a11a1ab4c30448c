"""The plan: what a valid job will be trained with, and the least GPU that it may be trained on.

A job's preset is a starting point. Where it does not fit, the planner goes down the ladder until it does, and reports
what it changed and why. What would change the result is never changed against the job's own setting.
"""

from typing import Any

import msgspec

from training_presets.advice import Advice, Level, card_advice
from training_presets.engines import (
    defects,
    minimum_tier,
    planned_engine,
    remedies,
    shortcomings,
)
from training_presets.invoke_schema import is_upstream, upstream_faults
from training_presets.ladder import shared_steps, steps_down
from training_presets.memory import MemoryEstimate, estimate_memory
from training_presets.presets import Preset, default_preset, presets
from training_presets.tiers import least_memory_mib
from training_presets.workload import Workload, workload_of
from training_schemas.jobs import CostOptimization, EngineName, MemoryTier, ModelFamily, TrainingJob, TrainingType
from training_schemas.plans import SettingChange
from training_schemas.progress import Fault
from training_schemas.spec import (
    PARAMETERS,
    FluxLoraParameters,
    OptimizerName,
    Quantization,
    SdxlParameters,
)
from training_schemas.validation import InvalidMessageError, convert_strictly

# Fields of a job that set the parameter of the same name.
JOB_PARAMETERS = ("resolution", "batch_size", "learning_rate", "max_train_steps", "lora_rank")

# What changes the result: here a job's own setting stands.
RESULT_CHANGING = {"quantization"}

# What prodigy multiplies its own estimate of the rate by (Mishchenko and Defazio 2023: "leave it set to 1").
PRODIGY_RATE = 1.0

# Within these, presets are known to give good results.
USUAL_RANKS = {ModelFamily.FLUX: (4, 32), ModelFamily.SDXL: (4, 16)}
USUAL_RESOLUTIONS = (512, 768, 1024)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A job's settings, resolved, and the tier of the queue that it waits in.

    ``fixed`` are the settings, by their Python names, that nobody may change; ``peak_mib`` is what the run needs on its
    GPU, or on each of its ``gpu_count`` GPUs, by the model of memory. ``upstream`` are the job's settings of
    invoke-training.
    """

    training_type: TrainingType
    tier: MemoryTier
    preset: str
    engine: EngineName
    parameters: FluxLoraParameters | SdxlParameters
    peak_mib: int
    gpu_count: int = 1
    fixed: frozenset[str] = frozenset()
    upstream: dict[str, Any] = {}
    changes: list[SettingChange] = []
    warnings: list[Advice] = []

    @property
    def family(self) -> ModelFamily:
        """The family of the job's base model."""
        return self.training_type.family

    @property
    def workload(self) -> Workload:
        """What is trained, as the models of memory and time see it."""
        return workload_of(self.training_type, self.parameters, gpu_count=self.gpu_count)

    @property
    def memory(self) -> MemoryEstimate:
        """What the run needs on its GPU, phase by phase."""
        return estimate_memory(self.workload)

    @property
    def ladder(self) -> list[FluxLoraParameters | SdxlParameters]:
        """The settings to fall back to when memory runs out, step by step."""
        return steps_down(self.parameters, fixed=self.fixed, quantizations=quantizations(self))


class DoesNotFitError(Exception):
    """A job does not fit a GPU, whatever may be changed about it; ``nearest`` are choices that would."""

    def __init__(self, needed_mib: int, memory_mib: int, nearest: list[str]) -> None:
        reason = f"needs {_gib(needed_mib)} GiB of GPU memory at least, and there are {_gib(memory_mib)}"
        instead = f"; nearest that fits: {', or '.join(nearest)}" if nearest else ""
        super().__init__(f"{reason}{instead}")
        self.needed_mib = needed_mib
        self.nearest = nearest


def plan_job(job: TrainingJob) -> Plan:
    """Resolve a job: its preset, then its own fields, then its overrides. Raises `InvalidMessageError`.

    The tier is the highest of what the training type needs, what the preset is made for and what the job asks for; a
    higher one, where the job asks for none and does not fit.
    """
    faults: list[Fault] = []
    engine = planned_engine(job.training_type, job.engine, job.gpu_count)
    preset = _preset_of(job, engine, faults)
    tier = _tier_of(job, preset, engine, faults)
    parameters = _parameters_of(job, preset, faults)
    if parameters is None:
        raise InvalidMessageError(faults)
    parameters, changes = _made_possible(job, engine, parameters, faults)
    if faults:
        raise InvalidMessageError(faults)
    parameters, more_changes = _made_consistent(job, parameters, faults)
    if faults:
        raise InvalidMessageError(faults)
    plan = Plan(
        training_type=job.training_type,
        tier=tier,
        preset=preset.name,
        engine=engine,
        parameters=parameters,
        peak_mib=0,
        gpu_count=job.gpu_count,
        fixed=frozenset(RESULT_CHANGING & _own_settings(job)) | _never_cached(job.training_type, engine, parameters),
        upstream=_upstream(job),
        changes=changes + more_changes,
    )
    return _with_warnings(_placed(plan, may_rise=job.gpu_memory_tier is None))


def fit(plan: Plan, memory_mib: int) -> Plan:
    """The plan for so much memory: as it is, or down the ladder to where it fits. Raises `DoesNotFitError`."""
    needed = 0
    for rung in (plan.parameters, *plan.ladder):
        needed = _peak_mib(plan, rung)
        if needed <= memory_mib:
            why = f"to fit {_gib(memory_mib)} GiB"
            return msgspec.structs.replace(
                plan,
                parameters=rung,
                peak_mib=needed,
                changes=[*plan.changes, *setting_changes(plan.parameters, rung, why)],
            )
    raise DoesNotFitError(needed, memory_mib, _nearest(plan, memory_mib))


def _peak_mib(plan: Plan, parameters: FluxLoraParameters | SdxlParameters) -> int:
    return msgspec.structs.replace(plan, parameters=parameters).memory.peak_mib


def _placed(plan: Plan, *, may_rise: bool) -> Plan:
    """The plan in the least tier, from its own on, that it fits. Raises `InvalidMessageError`."""
    tiers = [tier for tier in MemoryTier if tier.gigabytes >= plan.tier.gigabytes] if may_rise else [plan.tier]
    for tier in tiers:
        try:
            fitted = fit(plan, least_memory_mib(tier))
        except DoesNotFitError as error:
            last = error
            continue
        return msgspec.structs.replace(fitted, tier=tier)
    raise InvalidMessageError([Fault(path="gpuMemoryTier", reason=str(last))])


def _nearest(plan: Plan, memory_mib: int) -> list[str]:
    """What would fit: a base in fewer bits, a smaller image, a larger GPU."""
    found = []
    lowest = [plan.parameters, *plan.ladder][-1]

    def fits(**changes: object) -> bool:
        return _peak_mib(plan, msgspec.structs.replace(lowest, **changes)) <= memory_mib

    if (smaller := next((one for one in quantizations(plan) if fits(quantization=one)), None)) is not None:
        found.append(f"quantization {smaller}")
    sizes = [size for size in reversed(USUAL_RESOLUTIONS) if size < lowest.resolution]
    if (size := next((size for size in sizes if fits(resolution=size)), None)) is not None:
        found.append(f"resolution {size}")
    needed = _peak_mib(plan, lowest)
    if (tier := next((tier for tier in MemoryTier if least_memory_mib(tier) >= needed), None)) is not None:
        found.append(f"gpuMemoryTier {tier}")
    return found


def quantizations(plan: Plan) -> tuple[Quantization, ...]:
    """What the planner may put the base model in, if the engine can: fp8 is for who asks for it."""
    return tuple(
        one
        for one in Quantization
        if one not in (Quantization.NONE, Quantization.FP8)
        and "quantization" not in _shortcomings_with(plan.training_type, plan.engine, plan.parameters, quantization=one)
    )


def _shortcomings_with(
    training_type: TrainingType,
    engine: EngineName,
    parameters: FluxLoraParameters | SdxlParameters,
    **changes: object,
) -> dict[str, str]:
    return shortcomings(engine, training_type, msgspec.structs.replace(parameters, **changes))


def _own_settings(job: TrainingJob) -> set[str]:
    """The settings that the job itself names, by their Python names."""
    names = _wire_names(job)
    own = {name for name in JOB_PARAMETERS if getattr(job, name) is not None}
    return own | {names[name] for name in job.config_overrides.keys() - _upstream(job).keys() if name in names}


def _wire_names(job: TrainingJob) -> dict[str, str]:
    """The settings of the job's family: their Python names by those on the wire."""
    return {field.encode_name: field.name for field in msgspec.structs.fields(PARAMETERS[job.training_type.family])}


def _upstream(job: TrainingJob) -> dict[str, Any]:
    """The job's settings of invoke-training: all overrides that are none of the worker's settings.

    ``optimizer`` is both: a name is ours, an object is invoke-training's.
    """
    if job.engine is not EngineName.INVOKE:
        return {}
    ours = _wire_names(job)
    return {
        name: value
        for name, value in job.config_overrides.items()
        if name not in ours or (name == "optimizer" and isinstance(value, dict))
    }


def _preset_of(job: TrainingJob, engine: EngineName, faults: list[Fault]) -> Preset:
    family = job.training_type.family
    known = {name: preset for name, preset in presets().items() if preset.family is family}
    if job.preset in known:
        return known[job.preset]
    if job.preset is not None:
        reason = f"unknown preset {job.preset!r} for {job.training_type}; one of {', '.join(known)}"
        faults.append(Fault(path="preset", reason=reason))
    tier = max(job.gpu_memory_tier or MemoryTier.GB8, minimum_tier(engine, job.training_type), key=_gigabytes)
    return default_preset(family, tier, job.cost_optimization or CostOptimization.BALANCED)


def _tier_of(job: TrainingJob, preset: Preset, engine: EngineName, faults: list[Fault]) -> MemoryTier:
    needed = max(minimum_tier(engine, job.training_type), preset.tier or MemoryTier.GB8, key=_gigabytes)
    asked = job.gpu_memory_tier or needed
    if asked.gigabytes < needed.gigabytes:
        by = " by invoke" if engine is EngineName.INVOKE else ""
        reason = f"{job.training_type} with preset {preset.name}{by} requires at least {needed}, not {asked}"
        faults.append(Fault(path="gpuMemoryTier", reason=reason))
    return asked


def _parameters_of(job: TrainingJob, preset: Preset, faults: list[Fault]) -> FluxLoraParameters | SdxlParameters | None:
    names = {field.name: field.encode_name for field in msgspec.structs.fields(TrainingJob)}
    fields = {names[name]: getattr(job, name) for name in JOB_PARAMETERS if getattr(job, name) is not None}
    upstream = _upstream(job)
    overrides = {name: value for name, value in job.config_overrides.items() if name not in upstream}
    settings = preset.parameters_for(job.training_type) | fields | overrides
    parameters = None
    try:
        parameters = convert_strictly(settings, PARAMETERS[preset.family])
    except InvalidMessageError as error:
        # The job's own fields are in range already, and presets are tested: what is left came from the overrides.
        faults += [_override_fault(job, fault) for fault in error.faults]
    faults += upstream_faults(job.training_type, upstream, parameters)
    if parameters and job.training_type is TrainingType.SDXL_TEXTUAL_INVERSION and not parameters.trigger_word.strip():
        reason = "a textual inversion needs the word that stands for what it learns"
        faults.append(Fault(path="configOverrides.triggerWord", reason=reason))
    return parameters


def _override_fault(job: TrainingJob, fault: Fault) -> Fault:
    name = fault.path.partition(".")[0]
    others = name not in _wire_names(job) and is_upstream(job.training_type, name)
    reason = f"{fault.reason}; engine invoke has one of that name" if others else fault.reason
    return Fault(path=f"configOverrides.{fault.path}", reason=reason)


def _made_possible(
    job: TrainingJob, engine: EngineName, parameters: FluxLoraParameters | SdxlParameters, faults: list[Fault]
) -> tuple[FluxLoraParameters | SdxlParameters, list[SettingChange]]:
    """Change what the engine has not, and report it; a fault where the job asks for it, or nothing else will do."""
    own, changes = _own_settings(job), []
    if why := shortcomings(engine, job.training_type, parameters, job.gpu_count).get("gpu_count"):
        faults.append(Fault(path="gpuCount", reason=why))
    wire = {name: wire for wire, name in _wire_names(job).items()}
    for setting, shortcoming in sorted(remedies(engine, job.training_type, parameters).items()):
        if not shortcoming.instead or (setting in own and not shortcoming.harmless):
            faults.append(Fault(path=_path(job, setting, wire[setting]), reason=shortcoming.why))
            continue
        changed = msgspec.structs.replace(parameters, **shortcoming.instead)
        changes += setting_changes(parameters, changed, shortcoming.why)
        parameters = changed
    return parameters, changes


def _path(job: TrainingJob, setting: str, wire: str) -> str:
    """Where a job gives a setting, or would."""
    field = setting in JOB_PARAMETERS and getattr(job, setting) is not None and wire not in job.config_overrides
    return wire if field else f"configOverrides.{wire}"


def _made_consistent(
    job: TrainingJob, parameters: FluxLoraParameters | SdxlParameters, faults: list[Fault]
) -> tuple[FluxLoraParameters | SdxlParameters, list[SettingChange]]:
    """Change what one setting asks of others, and report it; a fault where the job itself sets it otherwise."""
    own, changes = _own_settings(job), []
    for setting, why in sorted(_uncached(parameters).items()):
        if not getattr(parameters, setting):
            continue
        changed = msgspec.structs.replace(parameters, **{setting: False})
        (change,) = setting_changes(parameters, changed, why)
        if setting in own:
            faults.append(Fault(path=f"configOverrides.{change.setting}", reason=why))
        changes.append(change)
        parameters = changed
    if parameters.optimizer is OptimizerName.PRODIGY and "learning_rate" not in own:
        changed = msgspec.structs.replace(parameters, learning_rate=PRODIGY_RATE)
        changes += setting_changes(parameters, changed, "prodigy finds the rate by itself; this is a factor")
        parameters = changed
    shared = shared_steps(parameters, job.gpu_count, fixed=own)
    why = f"each of {job.gpu_count} GPUs takes as many micro-batches of a step"
    if shared is None:
        faults.append(Fault(path="configOverrides.gradientAccumulationSteps", reason=f"cannot be shared out: {why}"))
        return parameters, changes
    return shared, changes + setting_changes(parameters, shared, why)


def _never_cached(
    training_type: TrainingType, engine: EngineName, parameters: FluxLoraParameters | SdxlParameters
) -> frozenset[str]:
    """The caches that must stay off."""
    caches = ("cache_text_encoder_outputs", "cache_vae_outputs")
    by_engine = {one for one in caches if one in _shortcomings_with(training_type, engine, parameters, **{one: True})}
    return frozenset(by_engine | _uncached(parameters).keys())


def _uncached(parameters: FluxLoraParameters | SdxlParameters) -> dict[str, str]:
    """What cannot be computed before training, by its Python name, and why."""
    found = {}
    if parameters.random_crop:
        found["cache_vae_outputs"] = "randomCrop encodes each image at each step"
    if parameters.shuffle_captions:
        found["cache_text_encoder_outputs"] = "shuffleCaptions encodes each caption at each step"
    return found


def setting_changes(
    before: FluxLoraParameters | SdxlParameters, after: FluxLoraParameters | SdxlParameters, why: str
) -> list[SettingChange]:
    """The settings that differ, by their names on the wire."""
    if before == after:
        return []
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    return [
        SettingChange(setting=name, before=old[name], after=value, why=why)
        for name, value in new.items()
        if old[name] != value
    ]


def _with_warnings(plan: Plan) -> Plan:
    low, high = USUAL_RANKS[plan.family]
    found = card_advice(plan.training_type, plan.tier)
    found += [
        Advice(level=Level.WARNING, message=message)
        for message in defects(plan.engine, plan.training_type, plan.parameters)
    ]
    if not low <= plan.parameters.lora_rank <= high:
        message = f"loraRank {plan.parameters.lora_rank} is beyond the usual {low} to {high}"
        found.append(Advice(level=Level.WARNING, message=message))
    if plan.parameters.resolution not in USUAL_RESOLUTIONS:
        sizes = ", ".join(map(str, USUAL_RESOLUTIONS))
        message = f"resolution {plan.parameters.resolution} is none of the usual {sizes}"
        found.append(Advice(level=Level.WARNING, message=message))
    return msgspec.structs.replace(plan, warnings=found)


def _gigabytes(tier: MemoryTier) -> int:
    return tier.gigabytes


def _gib(mib: int) -> str:
    return f"{mib / 1024:.1f}"
