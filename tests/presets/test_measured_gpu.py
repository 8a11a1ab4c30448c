"""The models beside what was measured on a GPU of our own: an H100, in November 2026."""

from collections.abc import Iterable, Sequence
from itertools import product
from math import log
from statistics import median

import msgspec

from training_presets.cards import named_card
from training_presets.duration import Speed, step_seconds
from training_presets.measurements import Measurement, compare, measurements
from training_presets.rates import rates_of
from training_schemas.selftest import GpuRates

# What is fitted, over all that can be: TFLOP/s of products, TB/s of elementwise operations, us a launch.
PRODUCTS = range(450, 800, 50)
TRAFFIC = (1.0, 1.3, 1.6, 1.9, 2.2, 2.6, 3.0)
LAUNCH = range(30, 64, 2)


def rows() -> list[Measurement]:
    """What was measured on it."""
    return [row for row in measurements() if row.reserved_gib is not None]


def h100() -> GpuRates:
    """What is known of it."""
    card = named_card("H100")
    assert card is not None
    return rates_of(card)


def seconds(row: Measurement, rates: GpuRates) -> float:
    """The model's estimate of a row."""
    return step_seconds(msgspec.structs.replace(row.workload, peft_layers=not row.own_layers), Speed(rates=rates))


def fitted(known: Sequence[Measurement]) -> GpuRates:
    """The rates that are nearest to these rows; those of attention, of restoring and of the optimizer stay."""

    def error(rates: GpuRates) -> float:
        return sum(log(seconds(row, rates) / (row.seconds or 0)) ** 2 for row in known)

    return min(_grid(), key=error)


def _grid() -> Iterable[GpuRates]:
    for flops, traffic, launch in product(PRODUCTS, TRAFFIC, LAUNCH):
        yield msgspec.structs.replace(
            h100(), product_flops=flops * 1e12, bytes_per_second=traffic * 1e12, launch_seconds=launch * 1e-6
        )


def test_the_models_are_as_near_to_our_own_gpu_as_they_promise() -> None:
    """Seconds within a factor 1.15 in the median and 1.35 at worst; memory within 5% and 12%."""
    found = [compare(row) for row in rows()]
    factors = [max(one.time_ratio, 1 / one.time_ratio) for one in found if one.time_ratio]
    errors = [abs(one.memory_error) for one in found if one.memory_error is not None]

    assert (len(factors), len(errors)) == (12, 12)
    assert median(factors) <= 1.15
    assert max(factors) <= 1.35
    assert median(errors) <= 0.05
    assert max(errors) <= 0.12


def test_what_is_fitted_to_the_other_rows_holds_for_each() -> None:
    """It is left out of the fit in its turn."""
    factors = []
    for left_out in rows():
        ratio = seconds(left_out, fitted([row for row in rows() if row is not left_out])) / (left_out.seconds or 0)
        factors.append(max(ratio, 1 / ratio))

    assert median(factors) <= 1.15
    assert max(factors) <= 1.35
