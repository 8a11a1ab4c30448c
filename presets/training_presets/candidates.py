"""The candidates: settings that compute the same step, each with its own need of memory and its own speed.

A step sees the same images whether they come in one micro-batch or in many, and has the same gradient whether
activations are kept or made again; but for rounding.
"""

from collections.abc import Iterable, Iterator

import msgspec

from training_presets.duration import Speed, step_seconds
from training_presets.ladder import MOST_ACCUMULATION
from training_presets.memory import MIB, estimate_memory, training_bytes
from training_presets.models import models
from training_presets.workload import Workload, workload_of
from training_schemas.jobs import TrainingType
from training_schemas.spec import Execution, FluxLoraParameters, Quantization, SdxlParameters

# The schema's bound on `batch_size`.
MOST_BATCH = 64

Parameters = FluxLoraParameters | SdxlParameters


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change from candidate to candidate: what is trained, where, and what nobody may change.

    ``images`` are those of the data set, None where nobody has counted them yet. ``steps`` are still to be taken.
    """

    training_type: TrainingType
    speed: Speed
    fixed: frozenset[str] = frozenset()
    gpu_count: int = 1
    images: int | None = None
    steps: int

    @property
    def blocks(self) -> int:
        """How many blocks can be checkpointed one by one."""
        return models()[self.training_type.family].denoiser.blocks


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Settings, how a step is computed with them, and what that takes: MiB at the peak, seconds a step and in all."""

    parameters: Parameters
    execution: Execution
    peak_mib: int
    seconds_per_step: float
    seconds: float


def candidate(run: Run, parameters: Parameters, execution: Execution) -> Candidate:
    """These very settings, with what they take."""
    work = _workload(run, parameters, execution)
    step = step_seconds(work, run.speed)
    compiling = run.speed.compiling.seconds if execution.compiled else 0.0
    return Candidate(
        parameters=parameters,
        execution=execution,
        peak_mib=estimate_memory(work).peak_mib,
        seconds_per_step=step,
        seconds=run.steps * step + compiling,
    )


def cheapest(found: Iterable[Candidate]) -> Candidate | None:
    """What costs least, and of that what needs least memory; None of nothing."""
    return min(found, key=lambda one: (one.seconds, one.peak_mib), default=None)


def candidates(
    run: Run, parameters: Parameters, execution: Execution, memory_mib: float, base: Quantization
) -> Iterator[Candidate]:
    """All that compute the same step on this base within so much memory, each with as many stored blocks as fit."""
    parameters = msgspec.structs.replace(parameters, quantization=base)
    for batch in micro_batches(run, parameters):
        for way in _ways(run, execution):
            found = _best_stored(run, batch, way, memory_mib)
            yield from (one for one in found if one.peak_mib <= memory_mib)


def micro_batches(run: Run, parameters: Parameters) -> Iterator[Parameters]:
    """The same images a step in micro-batches of every size that divides them and that can be shared out."""
    if not run.fixed.isdisjoint({"batch_size", "gradient_accumulation_steps"}):
        yield parameters
        return
    images = parameters.batch_size * parameters.gradient_accumulation_steps
    for batch in range(1, min(images, MOST_BATCH) + 1):
        accumulation, rest = divmod(images, batch)
        if not rest and accumulation <= MOST_ACCUMULATION and accumulation % run.gpu_count == 0:
            yield msgspec.structs.replace(parameters, batch_size=batch, gradient_accumulation_steps=accumulation)


def _ways(run: Run, execution: Execution) -> Iterator[Execution]:
    """Attention kept or not, blocks compiled or not, data on the GPU or not: where that is possible, and may help."""
    compiling = run.speed.compiling
    helps = compiling.operations < 1 or compiling.traffic < 1
    for compiled in (False, True)[: 1 + helps]:
        for on_device in (False, True)[: 1 + (run.images is not None)]:
            for kept in (False, True)[: 1 + bool(run.blocks)]:
                yield msgspec.structs.replace(
                    execution, compiled=compiled, data_on_device=on_device, keep_attention=kept, stored_blocks=0
                )


def _best_stored(run: Run, parameters: Parameters, execution: Execution, memory_mib: float) -> Iterator[Candidate]:
    """With all activations kept, and with checkpointing and as many blocks' kept as have room."""
    may_change = "gradient_checkpointing" not in run.fixed
    if not execution.keep_attention and (may_change or not parameters.gradient_checkpointing):
        yield candidate(run, msgspec.structs.replace(parameters, gradient_checkpointing=False), execution)
    if may_change or parameters.gradient_checkpointing:
        checkpointed = msgspec.structs.replace(parameters, gradient_checkpointing=True)
        count = _blocks_with_room(run, checkpointed, execution, memory_mib)
        yield candidate(run, checkpointed, msgspec.structs.replace(execution, stored_blocks=count))


def _blocks_with_room(run: Run, parameters: Parameters, execution: Execution, memory_mib: float) -> int:
    """How many blocks can keep their activations, when the need grows evenly with each; all but one at most."""
    most = run.blocks - 1
    if most < 1:
        return 0
    none, all_of_them = (
        training_bytes(_workload(run, parameters, msgspec.structs.replace(execution, stored_blocks=count)))
        for count in (0, most)
    )
    if all_of_them <= none:
        return 0
    return max(0, min(most, int(most * (memory_mib * MIB - none) / (all_of_them - none))))


def _workload(run: Run, parameters: Parameters, execution: Execution) -> Workload:
    images = {} if run.images is None else {"images": run.images}
    return workload_of(run.training_type, parameters, gpu_count=run.gpu_count, execution=execution, **images)
