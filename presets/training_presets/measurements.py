"""The check: what others have measured and published, beside the estimates of the models of memory and time."""

from functools import cache
from statistics import median

import msgspec

from training_presets.cards import named_card
from training_presets.data import read_data
from training_presets.duration import seconds_per_step
from training_presets.memory import CONTEXT, GIB, estimate_memory
from training_presets.workload import Workload
from training_schemas.progress import Phase

# The phases that `benchmarks.gpu` goes through.
RESERVED = {Phase.LOADING_MODEL, Phase.TRAINING}


class Measurement(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One published figure, or several: the peak in ``gib``, sizes of cards that it ``fits`` or not, seconds a pass.

    ``reserved_gib`` is the peak that torch reserved while the denoiser was loaded and trained, without the driver's own
    part. ``assumed`` are settings that the
    source does not state. Adapters were peft's, unless a row is of this trainer's ``own_layers``.
    """

    name: str
    source: str
    workload: Workload
    card: str | None = None
    gib: float | None = None
    reserved_gib: float | None = None
    own_layers: bool = False
    fits: float | None = None
    out_of_memory: float | None = None
    seconds: float | None = None
    assumed: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A published figure beside ours: GiB, and seconds a pass."""

    measurement: Measurement
    gib: float
    seconds: float | None

    @property
    def memory_error(self) -> float | None:
        """By which part of the published peak ours differs: 0.1 is 10% too much."""
        published = self.measurement.gib or self.measurement.reserved_gib
        return None if published is None else self.gib / published - 1

    @property
    def time_ratio(self) -> float | None:
        """How many times as long as published a pass takes by our estimate."""
        published = self.measurement.seconds
        return None if published is None or self.seconds is None else self.seconds / published

    @property
    def holds(self) -> bool | None:
        """Whether we agree on the cards that it fits and on those that it does not; None where no card is named."""
        fits, fails = self.measurement.fits, self.measurement.out_of_memory
        if fits is None and fails is None:
            return None
        return (fits is None or self.gib <= fits) and (fails is None or self.gib > fails)


class Summary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All comparisons in five figures: errors of peaks, factors between times, and cards that we agree on."""

    memory_median: float
    memory_worst: float
    time_median: float
    time_worst: float
    cards_agreed: int
    cards: int


@cache
def measurements() -> list[Measurement]:
    """The published table."""
    return msgspec.convert(read_data("measurements.toml")["rows"], list[Measurement])


def compare(measurement: Measurement) -> Comparison:
    """Ours beside theirs."""
    card = None if measurement.card is None else named_card(measurement.card)
    work = msgspec.structs.replace(measurement.workload, peft_layers=not measurement.own_layers)
    return Comparison(
        measurement=measurement,
        gib=_reserved_gib(work) if measurement.reserved_gib else estimate_memory(work).peak_gib,
        seconds=None if card is None else seconds_per_step(work, card) / work.accumulation,
    )


def _reserved_gib(work: Workload) -> float:
    """What torch is expected to reserve while the denoiser is loaded and trained."""
    phases = [one for one in estimate_memory(work).phases if one.phase in RESERVED]
    return (max(phase.total for phase in phases) - CONTEXT) / GIB


def summarise(comparisons: list[Comparison]) -> Summary:
    """The median and the worst of all."""
    errors = [abs(one.memory_error) for one in comparisons if one.memory_error is not None]
    factors = [max(one.time_ratio, 1 / one.time_ratio) for one in comparisons if one.time_ratio is not None]
    cards = [one.holds for one in comparisons if one.holds is not None]
    return Summary(
        memory_median=median(errors),
        memory_worst=max(errors),
        time_median=median(factors),
        time_worst=max(factors),
        cards_agreed=sum(cards),
        cards=len(cards),
    )
