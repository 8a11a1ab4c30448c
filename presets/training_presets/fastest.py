"""The choice: of all settings that give a plan's result, those that cost least on the GPU that is at hand.

A plan is made for the least GPU of its tier. Where it is claimed there may be more memory: for larger micro-batches,
for activations that need not be made again, for a base in all of its bits. And there may be less, or it ran out before.
"""

import msgspec

from training_presets.candidates import Candidate, Parameters, Run, candidate, candidates, cheapest
from training_presets.cards import CardSpec, find_card
from training_presets.duration import Speed
from training_presets.planner import Plan, fit, quantizations, setting_changes
from training_presets.rates import Compiling, rates_of
from training_presets.step_down import after_out_of_memory
from training_schemas.jobs import EngineName
from training_schemas.plans import SettingChange
from training_schemas.selftest import GpuRates
from training_schemas.spec import AttentionKernel, Execution, Quantization

# How much more than predicted a run may need: the model of memory is off by 12% at worst on a GPU of our own.
MARGIN = 0.12


class TargetGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that a job is to be trained on: NVML's name of it, its memory and what of it is free, in MiB.

    ``rates`` and ``attention_kernels`` are what its self-test found; ``cards`` are those of the operator, which go
    before the catalogue's, and ``card`` goes before both. ``engine`` is the one that trains there.
    """

    name: str
    memory_mib: int
    free_mib: int
    rates: GpuRates | None = None
    compiling: Compiling = Compiling()
    attention_kernels: tuple[AttentionKernel, ...] = Execution().attention_kernels
    cards: tuple[CardSpec, ...] = ()
    card: CardSpec | None = None
    engine: EngineName = EngineName.DIFFUSERS

    @property
    def speed(self) -> Speed | None:
        """How fast it is; None where nobody knows."""
        card = self.card or find_card(self.name, self.memory_mib, self.cards)
        if card is None:
            return None if self.rates is None else Speed(rates=self.rates, compiling=self.compiling)
        return Speed(rates=rates_of(card, self.rates), compiling=self.compiling)


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What has happened to a job: how often memory ran out, its first attempt's settings, the steps it has taken."""

    out_of_memory: int = 0
    first: Parameters | None = None
    steps: int = 0


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What to train with, and how to compute it; what of it is not the plan's, and why.

    ``gain`` is how many times as much the plan as it was would cost here for the steps that are left. It may be below
    1 after memory ran out, or on a base that an earlier attempt began with. Seconds are None on a GPU that nobody
    knows.
    """

    parameters: Parameters
    execution: Execution
    changes: list[SettingChange]
    peak_mib: int
    seconds_per_step: float | None = None
    planned_seconds_per_step: float | None = None
    gain: float = 1.0


def choose(
    plan: Plan, gpu: TargetGpu, before: Before | None = None, *, images: int | None = None, margin: float = MARGIN
) -> Choice:
    """The settings for a job on a GPU, after what has happened to it before. Raises `DoesNotFitError`.

    The base and the images of a step stay what they were in the first attempt, unless memory forces them down. Data is
    kept on the GPU only where the number of ``images`` is known.
    """
    before = before or Before()
    kept = plan if before.first is None else msgspec.structs.replace(plan, parameters=before.first)
    fitted = fit(kept, gpu.free_mib)
    speed, plain = gpu.speed, Execution(attention_kernels=gpu.attention_kernels)
    if speed is None or EngineName.INVOKE in {plan.engine, gpu.engine}:
        return _down_the_ladder(plan, fitted, plain, before.out_of_memory)
    run = _run_of(plan, speed, before.steps, images)
    planned = candidate(run, fit(plan, gpu.free_mib).parameters, plain)
    start = candidate(run, fitted.parameters, plain)
    chosen = _fastest(run, start, gpu.free_mib / (1 + margin), may_rise=before.first is None)
    chosen = after_out_of_memory(run, chosen, before.out_of_memory, bases=quantizations(fitted), margin=margin)
    return _choice(plan, fitted, planned, chosen, gpu)


def fastest(plan: Plan, gpu: TargetGpu, *, images: int | None = None, margin: float = MARGIN) -> Choice:
    """The settings that cost least on a GPU, for a job that has not been tried yet. Raises `DoesNotFitError`."""
    return choose(plan, gpu, images=images, margin=margin)


def _run_of(plan: Plan, speed: Speed, steps_taken: int, images: int | None) -> Run:
    return Run(
        training_type=plan.training_type,
        speed=speed,
        fixed=plan.fixed,
        gpu_count=plan.gpu_count,
        images=images,
        steps=max(1, plan.parameters.max_train_steps - steps_taken),
    )


def _fastest(run: Run, start: Candidate, memory_mib: float, *, may_rise: bool) -> Candidate:
    """What costs least, on a base in all of its bits where that has room and is not slower than what it starts from."""
    base = start.parameters.quantization
    rises = may_rise and base is not Quantization.NONE and "quantization" not in run.fixed
    for one in (Quantization.NONE, base) if rises else (base,):
        best = cheapest(candidates(run, start.parameters, start.execution, memory_mib, one))
        if best is not None and best.seconds <= start.seconds:
            return best
    return start


def _down_the_ladder(plan: Plan, fitted: Plan, execution: Execution, times: int) -> Choice:
    """Where no speed is known, or the engine computes a step in its own way: the plan, or a rung below it."""
    ladder = [fitted.parameters, *fitted.ladder]
    parameters = ladder[min(times, len(ladder) - 1)]
    lowered = msgspec.structs.replace(fitted, parameters=parameters)
    why = "less memory: it ran out before" if times else "to fit the memory that is free"
    return Choice(
        parameters=parameters,
        execution=execution,
        changes=setting_changes(plan.parameters, parameters, why),
        peak_mib=lowered.memory.peak_mib,
    )


def _choice(plan: Plan, fitted: Plan, planned: Candidate, chosen: Candidate, gpu: TargetGpu) -> Choice:
    gain = planned.seconds / chosen.seconds
    return Choice(
        parameters=chosen.parameters,
        execution=chosen.execution,
        changes=[*_parameter_changes(plan, fitted, chosen, gpu, gain), *_execution_changes(planned, chosen, gpu, gain)],
        peak_mib=chosen.peak_mib,
        seconds_per_step=chosen.seconds_per_step,
        planned_seconds_per_step=planned.seconds_per_step,
        gain=gain,
    )


def _parameter_changes(plan: Plan, fitted: Plan, chosen: Candidate, gpu: TargetGpu, gain: float) -> list[SettingChange]:
    forced = {change.setting: change for change in setting_changes(plan.parameters, fitted.parameters, "")}
    found = []
    for change in setting_changes(plan.parameters, chosen.parameters, _why(gpu, gain)):
        known = forced.get(change.setting)
        if known is not None and known.after == change.after:
            found.append(msgspec.structs.replace(change, why=f"to fit {gpu.free_mib / 1024:.1f} GiB"))
        elif change.setting == "quantization" and change.after == Quantization.NONE:
            why = f"there is room for the base as it is; the preset saved memory; {_why(gpu, gain)}"
            found.append(msgspec.structs.replace(change, why=why))
        else:
            found.append(change)
    return found


def _execution_changes(planned: Candidate, chosen: Candidate, gpu: TargetGpu, gain: float) -> list[SettingChange]:
    changed = [
        (field.encode_name, getattr(planned.execution, field.name), getattr(chosen.execution, field.name))
        for field in msgspec.structs.fields(Execution)
    ]
    return [
        SettingChange(setting=name, before=before, after=after, why=_why(gpu, gain))
        for name, before, after in changed
        if before != after
    ]


def _why(gpu: TargetGpu, gain: float) -> str:
    room = f"in {gpu.free_mib / 1024:.1f} GiB"
    return f"{gain:.2f} times as fast {room}" if gain >= 1 else "memory ran out before, or an attempt began so"
