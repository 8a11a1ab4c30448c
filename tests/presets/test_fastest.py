"""The choice on the GPU that is at hand: never slower than the plan, never more than is free, and the same result."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_presets.cards import CardSpec, named_card
from training_presets.fastest import MARGIN, Before, Choice, TargetGpu, choose
from training_presets.memory import estimate_memory
from training_presets.planner import DoesNotFitError, Plan, fit, plan_job
from training_presets.presets import presets
from training_presets.rates import Compiling
from training_presets.workload import workload_of
from training_schemas.jobs import EngineName, TrainingJob, TrainingType
from training_schemas.spec import Execution, Quantization
from training_schemas.validation import InvalidMessageError, convert_strictly

# What a choice may change: how a step is computed, and the base.
FREE = {"batchSize", "gradientAccumulationSteps", "gradientCheckpointing", "quantization"}


def plan(training_type: str = "FLUX_LORA", **fields: Any) -> Plan:
    """The plan of a valid job with these fields, named as on the wire."""
    message = {"jobId": "a", "trainingType": training_type, "datasetPath": "/d", "outputPath": "/o"}
    return plan_job(convert_strictly(message | fields, TrainingJob))


def card(name: str) -> CardSpec:
    """A GPU of the catalogue."""
    found = named_card(name)
    assert found is not None
    return found


def gpu(name: str = "H100", free_mib: int | None = None, **fields: Any) -> TargetGpu:
    """A GPU of the catalogue, all of it free."""
    found = card(name)
    free = found.memory_mib if free_mib is None else free_mib
    return TargetGpu(name=found.name, memory_mib=found.memory_mib, free_mib=free, **fields)


def images_a_step(choice: Choice | Plan) -> int:
    """How many images an optimizer step sees."""
    return choice.parameters.batch_size * choice.parameters.gradient_accumulation_steps


def peak_mib(planned: Plan, choice: Choice) -> int:
    """The estimate of a choice by the model of memory."""
    work = workload_of(
        planned.training_type, choice.parameters, gpu_count=planned.gpu_count, execution=choice.execution
    )
    return estimate_memory(work).peak_mib


def test_a_plan_for_24_gb_rises_on_an_h100() -> None:
    """Larger micro-batches, nothing made again, and the base as it is: several times as fast, and it has a reason."""
    planned = plan(preset="flux_24gb_balanced")

    chosen = choose(planned, gpu("H100"))

    assert chosen.gain > 3
    assert (chosen.parameters.quantization, chosen.parameters.gradient_checkpointing) == (Quantization.NONE, False)
    assert images_a_step(chosen) == images_a_step(planned) == 8
    assert {change.setting for change in chosen.changes} == FREE
    (base,) = [change for change in chosen.changes if change.setting == "quantization"]
    assert base.why.startswith("there is room for the base as it is")


def test_a_base_that_the_job_itself_names_stands() -> None:
    """However much room there is."""
    planned = plan(configOverrides={"quantization": "nf4"})

    assert choose(planned, gpu("H100")).parameters.quantization is Quantization.NF4


def test_later_attempts_keep_the_base_and_the_images_of_the_first() -> None:
    """On a small GPU it began in 4 bits, and goes on so; one that began on a large one goes down only if it must."""
    planned = plan(preset="flux_24gb_balanced")
    small, large = choose(planned, gpu("RTX 4090")), choose(planned, gpu("H100"))

    onward = choose(planned, gpu("H100"), Before(first=small.parameters))
    back = choose(planned, gpu("A100 40GB"), Before(first=large.parameters))
    squeezed = choose(planned, gpu("RTX 4090"), Before(first=large.parameters))

    assert [small.parameters.quantization, onward.parameters.quantization] == [Quantization.NF4] * 2
    assert onward.gain > 1
    assert [large.parameters.quantization, back.parameters.quantization] == [Quantization.NONE] * 2
    assert squeezed.parameters.quantization is not Quantization.NONE
    assert {images_a_step(one) for one in (small, large, onward, back, squeezed)} == {8}


def test_data_stays_on_the_gpu_where_somebody_has_counted_it_and_it_has_room() -> None:
    """Ten thousand captions of FLUX are 42 GB."""
    planned = plan(preset="flux_24gb_balanced")

    assert not choose(planned, gpu("H100")).execution.data_on_device
    assert choose(planned, gpu("H100"), images=20).execution.data_on_device
    assert not choose(planned, gpu("H100"), images=10_000).execution.data_on_device


def test_blocks_are_compiled_where_that_is_known_to_pay_within_the_job() -> None:
    """It takes 90 seconds once; without a figure of what it brings, nothing is expected of it."""
    gain = Compiling(operations=0.5, traffic=0.5)
    long, short = plan(maxTrainSteps=2000), plan(maxTrainSteps=10)

    assert choose(long, gpu(compiling=gain)).execution.compiled
    assert not choose(long, gpu(compiling=gain), Before(steps=1990)).execution.compiled
    assert not choose(short, gpu(compiling=gain)).execution.compiled
    assert not choose(long, gpu()).execution.compiled


def test_another_engine_and_an_unknown_gpu_get_the_plan() -> None:
    """How they compute a step, or how fast, is not known."""
    planned = plan("SDXL_LORA")
    strange = TargetGpu(name="x", memory_mib=80_000, free_mib=80_000)

    for chosen in (choose(planned, gpu("H100", engine=EngineName.INVOKE)), choose(planned, strange)):
        assert (chosen.parameters, chosen.execution) == (planned.parameters, Execution())
        assert (chosen.changes, chosen.gain) == ([], 1.0)
    assert choose(planned, strange, Before(out_of_memory=1)).parameters.batch_size == 1


def test_what_memory_ran_out_of_is_followed_by_clearly_less() -> None:
    """Each choice needs less than the one before, down to where nothing is left; the step stays the same."""
    planned = plan(preset="flux_24gb_balanced")
    times = [choose(planned, gpu("H100"), Before(out_of_memory=count)) for count in range(20)]
    ladder = list({one.peak_mib: one for one in times}.values())

    peaks = [one.peak_mib for one in times[: len(ladder)]]
    assert peaks == sorted(set(peaks), reverse=True)
    assert peaks[1] * (1 + MARGIN) <= peaks[0]
    assert len(ladder) > 4
    assert (ladder[-1].parameters.batch_size, ladder[-1].parameters.quantization) == (1, Quantization.NF4)
    assert ladder[-1].execution == Execution()
    assert {images_a_step(one) for one in ladder} == {8}


NAMES = ("RTX 3060", "RTX 4090", "A100 40GB", "H100", "B200")

plans: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "preset": st.sampled_from([name for name in presets() if name.startswith("flux")]),
        "batch_size": st.integers(1, 12),
        "resolution": st.sampled_from((512, 768, 1024)),
        "checkpointing": st.booleans(),
        "base": st.none() | st.sampled_from(Quantization),
        "gpu_count": st.sampled_from((1, 2)),
    }
)


def planned_of(drawn: dict[str, Any]) -> Plan | None:
    """The plan of a drawn job; None where there is none."""
    base = {} if drawn["base"] is None else {"quantization": str(drawn["base"])}
    try:
        return plan(
            preset=drawn["preset"],
            batchSize=drawn["batch_size"],
            resolution=drawn["resolution"],
            gpuCount=drawn["gpu_count"],
            configOverrides={"gradientCheckpointing": drawn["checkpointing"], **base},
        )
    except InvalidMessageError:
        return None


@settings(max_examples=150, deadline=None)
@given(plans, st.sampled_from(NAMES), st.floats(0.3, 1), st.none() | st.integers(1, 5_000))
def test_a_choice_costs_no_more_than_the_plan_within_what_is_free(
    drawn: dict[str, Any], name: str, share: float, images: int | None
) -> None:
    """It sees the same images a step, and changes nothing that is fixed; only a plan as it was goes into the margin."""
    planned, here = planned_of(drawn), gpu(name, int(card(name).memory_mib * share))
    if planned is None:
        return
    try:
        fitted = fit(planned, here.free_mib)
    except DoesNotFitError:
        with pytest.raises(DoesNotFitError):
            choose(planned, here)
        return

    chosen = choose(planned, here, images=images)

    assert chosen.gain >= 1
    assert images_a_step(chosen) == images_a_step(planned)
    assert chosen.parameters.gradient_accumulation_steps % planned.gpu_count == 0
    assert {one.setting for one in chosen.changes} & {"quantization"} <= (
        set() if "quantization" in planned.fixed else {"quantization"}
    )
    before, after = msgspec.to_builtins(planned.parameters), msgspec.to_builtins(chosen.parameters)
    assert {setting for setting, value in after.items() if before[setting] != value} <= FREE
    as_planned = chosen.parameters == fitted.parameters and chosen.execution == Execution()
    assert chosen.peak_mib <= here.free_mib / (1 if as_planned else 1 + MARGIN)
    if images is None:
        assert chosen.peak_mib == peak_mib(planned, chosen)


@settings(max_examples=50, deadline=None)
@given(plans, st.sampled_from(NAMES), st.integers(0, 6))
def test_each_time_that_memory_ran_out_needs_less_until_nothing_is_left(
    drawn: dict[str, Any], name: str, times: int
) -> None:
    """And the step stays the same, on the base that the job names."""
    planned = planned_of(drawn)
    if planned is None:
        return
    try:
        above, below = (choose(planned, gpu(name), Before(out_of_memory=count)) for count in (times, times + 1))
    except DoesNotFitError:
        return

    assert below.peak_mib < above.peak_mib or below == above
    assert images_a_step(below) == images_a_step(planned)
    assert "quantization" not in planned.fixed or below.parameters.quantization is planned.parameters.quantization


@settings(max_examples=100, deadline=None)
@given(plans, st.sampled_from(NAMES), st.floats(0.3, 1), st.floats(0.3, 1))
def test_more_free_memory_is_never_slower(drawn: dict[str, Any], name: str, one: float, other: float) -> None:
    """On the same base: one in all of its bits may be slower than one in few, and is better."""
    planned = planned_of({**drawn, "base": Quantization.NF4})
    if planned is None:
        return
    low, high = sorted((one, other))
    try:
        less, more = (choose(planned, gpu(name, int(card(name).memory_mib * share))) for share in (low, high))
    except DoesNotFitError:
        return

    assert less.seconds_per_step is not None
    assert more.seconds_per_step is not None
    assert more.seconds_per_step <= less.seconds_per_step * (1 + 1e-9)


@pytest.mark.parametrize("kind", TrainingType)
def test_sdxl_keeps_all_activations_or_none(kind: TrainingType) -> None:
    """Its UNet has no blocks of one kind."""
    chosen = choose(plan(kind), gpu("H100"))

    assert (chosen.execution.stored_blocks > 0, chosen.execution.keep_attention) == (False, False) or kind.startswith(
        "FLUX"
    )
    assert chosen.gain >= 1
