"""Pace, time and cost of a run, on a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_schemas.usage import Usage
from training_worker.attempts.usage import WINDOW, UsageMeter


class Clock:
    """Time as an input."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now


def test_usage_counts_from_the_start_of_the_trainer() -> None:
    """Loading the model occupies the GPU as much as training does."""
    clock = Clock()
    meter = UsageMeter(3.6, started=clock.now, clock=clock)

    assert meter.usage() == Usage(gpu_seconds=0.0, cost_usd=0.0)
    clock.now += 1800
    assert meter.usage() == Usage(gpu_seconds=1800.0, cost_usd=1.8)


def test_each_of_several_gpus_counts() -> None:
    """Their GPU-seconds add up, wasted ones too; the price is already that of all."""
    clock = Clock()
    meter = UsageMeter(7.2, started=clock.now, clock=clock, gpu_count=2)
    meter.kept(clock.now + 600)
    clock.now += 1800

    assert meter.usage_if_lost() == Usage(gpu_seconds=3600.0, cost_usd=3.6, wasted_gpu_seconds=2400.0)


def test_usage_ends_with_the_trainer() -> None:
    """What the daemon does afterwards is free."""
    clock = Clock()
    meter = UsageMeter(3.6, started=clock.now, clock=clock)
    clock.now += 1800
    meter.stop()
    clock.now += 100

    assert meter.usage() == Usage(gpu_seconds=1800.0, cost_usd=1.8)


def test_usage_can_end_in_the_past() -> None:
    """The trainer ended while no daemon was there."""
    clock = Clock()
    meter = UsageMeter(3.6, started=clock.now - 500, clock=clock)
    meter.stop(clock.now - 100)

    assert meter.usage() == Usage(gpu_seconds=400.0, cost_usd=0.4)


def test_a_daemon_that_comes_later_counts_on() -> None:
    """The GPU was occupied all the while."""
    clock = Clock()

    assert UsageMeter(3.6, started=clock.now - 500, clock=clock).usage().gpu_seconds == 500.0


def test_a_clock_that_was_set_back_makes_nothing_negative() -> None:
    """Neither what was used nor what was wasted."""
    clock = Clock()
    meter = UsageMeter(3.6, started=clock.now + 500, clock=clock)

    assert meter.usage_if_lost() == Usage(gpu_seconds=0.0, cost_usd=0.0, wasted_gpu_seconds=0.0)


def test_what_came_after_the_last_checkpoint_is_wasted_if_it_is_lost() -> None:
    """All of it where there is none; an older checkpoint does not reduce it."""
    clock = Clock()
    meter = UsageMeter(None, started=clock.now, clock=clock)
    clock.now += 100
    assert meter.usage_if_lost().wasted_gpu_seconds == 100.0

    meter.kept(clock.now - 30)
    meter.kept(clock.now - 60)
    assert meter.usage_if_lost().wasted_gpu_seconds == 30.0
    assert meter.usage().wasted_gpu_seconds == 0.0
    meter.kept(clock.now + 5)
    assert meter.usage_if_lost().wasted_gpu_seconds == 0.0


def test_a_budget_lasts_for_as_long_as_the_price_allows() -> None:
    """Less what is spent; below zero once it is."""
    clock = Clock()
    meter = UsageMeter(3.6, started=clock.now, clock=clock)
    assert meter.seconds_until(1.8) == pytest.approx(1800.0)

    clock.now += 2000
    assert meter.seconds_until(1.8) == pytest.approx(-200.0)


@pytest.mark.parametrize("price", [None, 0.0])
def test_a_budget_without_a_price_lasts_for_ever(price: float | None) -> None:
    """Nobody knows when it is spent."""
    assert UsageMeter(price, started=1_000.0, clock=Clock()).seconds_until(1.8) is None


def test_a_gpu_without_a_price_has_seconds_and_no_cost() -> None:
    """Nothing is invented."""
    clock = Clock()
    meter = UsageMeter(None, started=clock.now, clock=clock)
    clock.now += 10

    assert meter.usage() == Usage(gpu_seconds=10.0, cost_usd=None)


@pytest.mark.parametrize("steps", [[], [(1, 5.0)]])
def test_before_the_second_step_nobody_knows_the_pace(steps: list[tuple[int, float]]) -> None:
    """One step gives no rate: the first one is slower than the rest."""
    meter = UsageMeter(None, started=1_000.0, clock=Clock())
    for number, time in steps:
        meter.step(number, time)

    assert (meter.steps_per_minute(), meter.seconds_left(100)) == (None, None)


def test_the_pace_is_that_between_steps() -> None:
    """Three steps take two intervals; the clock is the trainer's own."""
    meter = UsageMeter(None, started=1_000.0, clock=Clock())
    for number, time in ((11, 100.0), (12, 102.0), (13, 104.0)):
        meter.step(number, time)

    assert (meter.steps_per_minute(), meter.seconds_left(10)) == (30.0, 20.0)


def test_the_pace_forgets_a_slow_beginning() -> None:
    """Only the last steps count."""
    meter = UsageMeter(None, started=1_000.0, clock=Clock())
    meter.step(1, 0.0)
    for number in range(2, WINDOW + 2):
        meter.step(number, 10_000.0 + number)

    assert meter.steps_per_minute() == 60.0


def test_after_the_last_step_nothing_is_left() -> None:
    """Zero, not unknown."""
    meter = UsageMeter(None, started=1_000.0, clock=Clock())
    meter.step(1, 0.0)
    meter.step(2, 1.0)

    assert meter.seconds_left(0) == 0.0


@pytest.mark.parametrize("times", [(5.0, 5.0), (5.0, 4.0)])
def test_steps_without_time_between_them_have_no_pace(times: tuple[float, float]) -> None:
    """The trainer's clock may stand still, or be set back."""
    meter = UsageMeter(None, started=1_000.0, clock=Clock())
    for number, time in enumerate(times, start=1):
        meter.step(number, time)

    assert (meter.steps_per_minute(), meter.seconds_left(10)) == (None, None)


@pytest.mark.parametrize("numbers", [(7, 7), (7, 6)])
def test_steps_that_do_not_go_forwards_have_no_pace(numbers: tuple[int, int]) -> None:
    """An engine may record a step twice, or count from the start again: that is no reason to fail a job."""
    meter = UsageMeter(None, started=1_000.0, clock=Clock())
    for time, number in enumerate(numbers):
        meter.step(number, float(time))

    assert (meter.steps_per_minute(), meter.seconds_left(10)) == (None, None)


@given(st.lists(st.floats(0.01, 1000), min_size=1), st.integers(0, 10_000))
def test_the_pace_lies_between_those_of_the_slowest_and_the_fastest_step(durations: list[float], left: int) -> None:
    """An average is no extrapolation."""
    meter = UsageMeter(None, started=1_000.0, clock=Clock())
    time = 0.0
    meter.step(0, time)
    for number, duration in enumerate(durations, start=1):
        time += duration
        meter.step(number, time)

    seconds = meter.seconds_left(left)
    assert seconds is not None
    assert left * min(durations) == pytest.approx(min(seconds, left * min(durations)))
    assert left * max(durations) == pytest.approx(max(seconds, left * max(durations)))
