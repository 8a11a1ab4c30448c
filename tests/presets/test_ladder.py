"""The settings that a job falls back to when memory runs out."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_presets.ladder import MOST_ACCUMULATION, shared_steps, steps_down
from training_presets.presets import presets
from training_schemas.jobs import ModelFamily
from training_schemas.spec import PARAMETERS, FluxLoraParameters, SdxlParameters
from training_schemas.validation import convert_strictly

Parameters = FluxLoraParameters | SdxlParameters


def parameters(
    batch_size: int, accumulation: int, *, checkpointing: bool, family: ModelFamily = ModelFamily.FLUX
) -> Parameters:
    """A balanced job's settings, with these."""
    name = {ModelFamily.FLUX: "flux_24gb_balanced", ModelFamily.SDXL: "sdxl_balanced"}[family]
    balanced = convert_strictly(presets()[name].parameters, PARAMETERS[family])
    return msgspec.structs.replace(
        balanced,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing,
    )


def rungs(batch_size: int, accumulation: int, *, checkpointing: bool = True) -> list[tuple[int, int, bool]]:
    """Micro-batch, accumulation and checkpointing of each step down."""
    return [
        (step.batch_size, step.gradient_accumulation_steps, step.gradient_checkpointing)
        for step in steps_down(parameters(batch_size, accumulation, checkpointing=checkpointing))
    ]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "expected"),
    [
        (1, 8, []),
        (2, 4, [(1, 8, True)]),
        (4, 2, [(2, 4, True), (1, 8, True)]),
        (6, 1, [(3, 2, True), (1, 6, True)]),
        (9, 1, [(3, 3, True), (1, 9, True)]),
        (7, 2, [(1, 14, True)]),
    ],
)
def test_the_micro_batch_goes_down_to_its_largest_proper_divisor(
    batch_size: int, accumulation: int, expected: list[tuple[int, int, bool]]
) -> None:
    """Halves while that is whole; accumulation makes up for it exactly."""
    assert rungs(batch_size, accumulation) == expected


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "expected"),
    [(4, 128, [(2, 256, True)]), (2, 256, []), (2, 129, []), (3, 86, []), (3, 85, [(1, 255, True)])],
)
def test_the_ladder_ends_where_accumulation_does(
    batch_size: int, accumulation: int, expected: list[tuple[int, int, bool]]
) -> None:
    """Rather than change how many images a step sees."""
    assert rungs(batch_size, accumulation) == expected


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "expected"),
    [
        (1, 8, [(1, 8, True)]),
        (2, 4, [(1, 8, False), (1, 8, True)]),
        (2, 256, [(2, 256, True)]),
    ],
)
def test_checkpointing_is_turned_on_last(
    batch_size: int, accumulation: int, expected: list[tuple[int, int, bool]]
) -> None:
    """Where the micro-batch can be no smaller."""
    assert rungs(batch_size, accumulation, checkpointing=False) == expected


@given(st.sampled_from(ModelFamily), st.integers(1, 64), st.integers(1, MOST_ACCUMULATION), st.booleans())
def test_each_step_trains_the_same_with_less_memory(
    family: ModelFamily, batch_size: int, accumulation: int, checkpointing: bool
) -> None:
    """Valid settings, the same images in each optimizer step, and less of them at a time or less kept of each."""
    start = parameters(batch_size, accumulation, checkpointing=checkpointing, family=family)
    ladder = [start, *steps_down(start)]

    for above, below in pairwise(ladder):
        assert (below.batch_size, not below.gradient_checkpointing) < (
            above.batch_size,
            not above.gradient_checkpointing,
        )
        assert below.batch_size < above.batch_size or below is ladder[-1]
        assert above.batch_size % below.batch_size == 0
    for step in ladder:
        assert step.batch_size * step.gradient_accumulation_steps == batch_size * accumulation
        assert convert_strictly(msgspec.to_builtins(step), type(start)) == step
        assert unchanged(step) == unchanged(start)
    assert ladder[-1].gradient_checkpointing


def unchanged(step: Parameters) -> dict[str, object]:
    """The settings that the ladder has no business with."""
    touched = {"batchSize", "gradientAccumulationSteps", "gradientCheckpointing"}
    return {name: value for name, value in msgspec.to_builtins(step).items() if name not in touched}


@given(st.integers(1, 64), st.integers(1, MOST_ACCUMULATION), st.booleans())
def test_the_ladder_is_the_same_from_each_of_its_steps(batch_size: int, accumulation: int, checkpointing: bool) -> None:
    """What lies below a step does not depend on how one came to it."""
    ladder = steps_down(parameters(batch_size, accumulation, checkpointing=checkpointing))

    assert [steps_down(step) for step in ladder] == [ladder[number:] for number in range(1, len(ladder) + 1)]


@pytest.mark.parametrize(
    ("batch", "accumulation", "gpu_count", "shared"),
    [
        (1, 4, 2, (1, 4)),
        (4, 1, 2, (2, 2)),
        (6, 1, 4, (2, 4)),
        (6, 2, 4, (3, 4)),
        (1, 3, 2, (1, 4)),
        (1, 1, 8, (1, 8)),
        (8, 1, 8, (1, 8)),
    ],
)
def test_a_step_is_shared_out_over_cards(
    batch: int, accumulation: int, gpu_count: int, shared: tuple[int, int]
) -> None:
    """The same number of images where that can be, and else as few more as can be."""
    settings = parameters(batch, accumulation, checkpointing=True)

    found = shared_steps(settings, gpu_count, fixed=set())

    assert found is not None
    assert (found.batch_size, found.gradient_accumulation_steps) == shared


def test_what_is_fixed_is_not_shared_out_again() -> None:
    """A batch size stays, and an accumulation that does not come out even cannot be."""
    settings = parameters(4, 1, checkpointing=True)

    kept = shared_steps(settings, 2, fixed={"batch_size"})

    assert kept is not None
    assert (kept.batch_size, kept.gradient_accumulation_steps) == (4, 2)
    assert shared_steps(settings, 2, fixed={"gradient_accumulation_steps"}) is None
