"""The model of time: what is slower, what does not matter, and FLOP that can be computed by hand."""

import pytest
from hypothesis import given, settings
from msgspec.structs import replace
from tests.presets.workloads import workload, workloads

from training_presets.cards import CardSpec, named_card
from training_presets.duration import (
    OWN_OPERATION,
    Speed,
    estimate_time,
    pass_seconds,
    seconds_per_pass,
    seconds_per_step,
)
from training_presets.rates import LAUNCH, STEP_LAUNCH, Compiling, rates_of
from training_presets.workload import Workload
from training_schemas.progress import Phase


def card(name: str) -> CardSpec:
    """A card of the catalogue."""
    found = named_card(name)
    assert found is not None
    return found


@pytest.mark.parametrize(("size", "tflop"), [(512, 67), (768, 134), (1024, 245)])
def test_a_step_of_flux_is_as_many_flop_as_can_be_computed(size: int, tflop: float) -> None:
    """Three times its linear layers and four and a half times its attention, on a card of 1 TFLOP/s."""
    endless = CardSpec(name="x", memory_mib=1, sustained_tflops=1, bandwidth_gbs=1e12, attention_shares=(1, 1))

    assert seconds_per_pass(workload(size=size), endless) == pytest.approx(tflop, rel=0.03)


def test_attention_has_rates_of_its_own() -> None:
    """A pass forward is four FLOP a pair of tokens and channel, one back ten; what is made again is forward twice."""
    fast = rates_of(CardSpec(name="x", memory_mib=1, sustained_tflops=1e9, bandwidth_gbs=1e12))
    slow = replace(fast, attention_forward_flops=1e12, attention_backward_flops=2e12, launch_seconds=1e-12)
    work = workload(size=1024)
    tera = 57 * 3072 * 4608**2 / 1e12

    def seconds(work: Workload) -> float:
        return pass_seconds(replace(work, data_on_device=True), Speed(rates=slow))

    assert seconds(work) == pytest.approx(tera * (2 * 4 + 10 / 2), rel=0.01)
    assert seconds(replace(work, keep_attention=True)) == pytest.approx(tera * (4 + 10 / 2), rel=0.01)
    assert seconds(replace(work, gradient_checkpointing=False)) == pytest.approx(tera * (4 + 10 / 2), rel=0.01)
    assert seconds(replace(work, stored_blocks=19)) == pytest.approx(tera * (4 * 5 / 3 + 10 / 2), rel=0.01)


def test_what_a_gpu_has_measured_itself_goes_before_what_is_known_of_its_kind() -> None:
    """And that before the catalogue's shares."""
    here = card("H100")
    measured = replace(rates_of(card("RTX 4090")), launch_seconds=1e-3)

    assert rates_of(here, measured) == replace(measured, launch_seconds=1e-3 * STEP_LAUNCH)
    assert rates_of(here) is here.rates
    assert seconds_per_step(workload(), here, measured) > seconds_per_step(workload(), here)


def test_compiled_blocks_take_what_is_known_to_remain() -> None:
    """Of operations where launches are the limit; nothing is gained where nothing is known."""
    half, unknown = (
        Speed(rates=rates_of(card("H100")), compiling=one) for one in (Compiling(operations=0.5), Compiling())
    )
    plain, compiled = (workload(size=256, data_on_device=True, compiled=on) for on in (False, True))

    assert pass_seconds(compiled, half) == pytest.approx(pass_seconds(plain, half) / 2)
    assert pass_seconds(compiled, unknown) == pass_seconds(plain, unknown)


def test_a_pass_is_never_shorter_than_the_start_of_its_operations() -> None:
    """However fast the card is."""
    work = workload(size=256, data_on_device=True)
    fast = CardSpec(name="x", memory_mib=1, sustained_tflops=1e6, bandwidth_gbs=1e9)

    assert seconds_per_pass(work, fast) == pytest.approx(work.law.kernels * LAUNCH * OWN_OPERATION)


def test_a_step_is_all_of_its_micro_batches() -> None:
    """Eight of one need about as long as one of eight, and the optimizer comes once."""
    many, one = workload(accumulation=8), workload(batch_size=8)

    assert seconds_per_step(many, card("RTX 4090")) == pytest.approx(seconds_per_step(one, card("RTX 4090")), rel=0.1)


def test_two_cards_take_half_of_the_passes_and_exchange_what_they_learned() -> None:
    """Each sends and receives a gradient once, at 16 GB/s; the optimizer's step is not shared."""
    one, two = (workload(accumulation=8, gpu_count=count) for count in (1, 2))
    passes = 4 * seconds_per_pass(one, card("RTX 4090"))

    saved = seconds_per_step(one, card("RTX 4090")) - seconds_per_step(two, card("RTX 4090"))

    assert saved == pytest.approx(passes - one.trained_parameters * 4 / 16e9)


def test_a_measured_step_goes_before_the_model() -> None:
    """The other phases stay what they were."""
    work = workload(steps=100)
    guessed, measured = (estimate_time(work, card("L40S"), measured=seconds) for seconds in (None, 7.0))

    assert measured.seconds_per_step == 7.0
    assert measured.phases == guessed.phases | {Phase.TRAINING: 700.0}


@settings(max_examples=1_000, deadline=None)
@given(workloads())
def test_a_better_card_is_never_slower_and_more_work_never_faster(work: Workload) -> None:
    """By rate and by bandwidth; by images, pixels and steps."""
    here = card("RTX 3060")
    seconds = estimate_time(work, here).seconds
    least = seconds * (1 - 1e-9)

    assert 0 < seconds < float("inf")
    assert estimate_time(work, replace(here, sustained_tflops=here.sustained_tflops * 2)).seconds <= seconds
    assert estimate_time(work, replace(here, bandwidth_gbs=here.bandwidth_gbs * 2)).seconds <= seconds
    assert estimate_time(replace(work, batch_size=work.batch_size + 1), here).seconds >= least
    assert estimate_time(replace(work, width=work.width + 16), here).seconds >= least
    assert estimate_time(replace(work, steps=work.steps + 1), here).seconds >= least
    assert estimate_time(replace(work, stored_blocks=work.stored_blocks + 1), here).seconds * (1 - 1e-9) <= seconds
    assert estimate_time(replace(work, keep_attention=True), here).seconds * (1 - 1e-9) <= seconds
    assert estimate_time(replace(work, data_on_device=True), here).seconds * (1 - 1e-9) <= seconds
