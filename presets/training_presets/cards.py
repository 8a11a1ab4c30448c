"""The catalogue of cards: what they hold, how fast they are, what an hour of them costs."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated

import msgspec
from msgspec import Meta

from training_presets.data import read_data
from training_schemas.selftest import GpuRates

Positive = Annotated[float, Meta(gt=0)]

# "A100 80GB", "V100 32": what stands after the name is a size, unless it is as long as a model's number.
SIZED_NAME = re.compile(r"(?P<name>.*\S)[ -](?P<size>\d{1,3}) ?(?:GB|G)?", re.IGNORECASE)
SIZE_TOLERANCE = 0.15

MIG_NAME = re.compile(r"\bMIG (?P<profile>\d+g\.\d+gb)")


class CardSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of card.

    ``name`` is a part of NVML's name of it, ``memory_mib`` the MiB that it reports, and ``at_least_mib`` the least that
    a card of this kind reports. ``sustained_tflops`` are TFLOP/s that matrix products in bfloat16 reach, in float16
    where there is no ``bfloat16``; ``attention_shares`` are FLOP/s of attention, forward and backward, for each of
    those. ``bandwidth_gbs`` are GB/s of its memory, and ``bandwidth_share`` is the part of them that elementwise
    operations reach. ``rates`` were measured on such a card, and go before all this. The price is that of an hour, in
    US dollars, with the range found on a ``date``.
    """

    name: str
    memory_mib: Annotated[int, Meta(gt=0)]
    at_least_mib: Annotated[int, Meta(ge=0)] = 0
    peak_tflops: Positive | None = None
    sustained_tflops: Positive
    bandwidth_gbs: Positive
    bandwidth_share: Positive = 0.85
    attention_shares: tuple[Positive, Positive] = (0.8, 0.65)
    rates: GpuRates | None = None
    bfloat16: bool = True
    fp8: bool = False
    usd_per_hour: Annotated[float, Meta(ge=0)] | None = None
    usd_range: tuple[float, float] | None = None
    source: str = ""
    date: str = ""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A MIG instance: which part of a card's multiprocessors and of its bandwidth it has."""

    card: str
    card_mib: int
    profile: str
    memory_mib: int
    compute_share: float
    bandwidth_share: float


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """All kinds of cards, and the slices that some of them are cut into."""

    cards: list[CardSpec]
    slices: list[Slice]


@cache
def catalogue() -> Catalogue:
    """What is known of cards."""
    return msgspec.convert(read_data("cards.toml"), Catalogue)


def find_card(name: str, memory_mib: int, extra: Sequence[CardSpec] = ()) -> CardSpec | None:
    """The card of this NVML name with so many MiB, the operator's ``extra`` cards first; None if nobody knows it."""
    if (mig := MIG_NAME.search(name)) is not None:
        return _find_slice(name, mig["profile"], memory_mib, extra)
    for cards in (extra, catalogue().cards):
        known = [card for card in cards if names(card.name, name) and memory_mib >= card.at_least_mib]
        if known:
            return max(known, key=lambda card: (len(card.name), card.at_least_mib))
    return None


def named_card(name: str, extra: Sequence[CardSpec] = ()) -> CardSpec | None:
    """The card that a person means by ``name``: of two sizes the one that it ends with, as in ``A100 80GB``.

    Without a size it is the smaller one; None if nobody knows it.
    """
    everything = [*extra, *catalogue().cards]
    sized = SIZED_NAME.fullmatch(name)
    candidates = [(name, None)] if sized is None else [(name, None), (sized["name"], int(sized["size"]))]
    for part, size in candidates:
        cards = [card for card in everything if size is None or _is_about(card, size)]
        # As in NVML's name, with more around it; or shorter than the catalogue's, as in "4090".
        longer = [card for card in cards if names(card.name.casefold(), part.casefold())]
        shorter = [card for card in cards if names(part.casefold(), card.name.casefold()) and part[-1:].isdigit()]
        best = max((len(card.name) for card in longer), default=min((len(card.name) for card in shorter), default=0))
        if found := [card for card in longer or shorter if len(card.name) == best]:
            return _meant(found, size if sized is None else int(sized["size"]))
    return None


def _meant(cards: Sequence[CardSpec], size: int | None) -> CardSpec:
    sizes = [card for card in cards if size is not None and _is_about(card, size)]
    return min(sizes or cards, key=lambda card: card.memory_mib)


def _is_about(card: CardSpec, gigabytes: int) -> bool:
    return abs(card.memory_mib / 1024 - gigabytes) < SIZE_TOLERANCE * gigabytes


def usd_per_hour(
    card: str, memory_mib: int, overrides: Mapping[str, float], extra: Sequence[CardSpec] = ()
) -> float | None:
    """The price of a card by its NVML name; the operator's own ``overrides`` go first. None where nobody knows."""
    own = [name for name in overrides if names(name, card)]
    if own:
        return overrides[max(own, key=len)]
    known = find_card(card, memory_mib, extra)
    return None if known is None else known.usd_per_hour


def cost_usd(seconds: float, hourly: float | None) -> float | None:
    """What so many seconds cost; None where the price is not known."""
    return None if hourly is None else seconds * hourly / 3600


def names(part: str, card: str) -> bool:
    """Whether a part of a name stands in a card's name as whole words: an RTX A1000 is no A100."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", card) is not None


def _find_slice(name: str, profile: str, memory_mib: int, extra: Sequence[CardSpec]) -> CardSpec | None:
    parents = [part for part in catalogue().slices if part.profile == profile and names(part.card, name)]
    if not parents:
        return None
    part = min(parents, key=lambda part: (-len(part.card), abs(part.memory_mib - memory_mib)))
    card = find_card(MIG_NAME.sub("", name), part.card_mib, extra)
    if card is None:
        return None
    return msgspec.structs.replace(
        card,
        name=f"{card.name} MIG {profile}",
        memory_mib=part.memory_mib,
        at_least_mib=0,
        peak_tflops=None if card.peak_tflops is None else card.peak_tflops * part.compute_share,
        sustained_tflops=card.sustained_tflops * part.compute_share,
        bandwidth_gbs=card.bandwidth_gbs * part.bandwidth_share,
        rates=None if card.rates is None else _share(card.rates, part),
        usd_per_hour=None if card.usd_per_hour is None else card.usd_per_hour * part.compute_share,
        usd_range=None,
    )


def _share(rates: GpuRates, part: Slice) -> GpuRates:
    """A slice's rates; the host's part, launches and the optimizer's calls, stays."""
    return msgspec.structs.replace(
        rates,
        product_flops=rates.product_flops * part.compute_share,
        attention_forward_flops=rates.attention_forward_flops * part.compute_share,
        attention_backward_flops=rates.attention_backward_flops * part.compute_share,
        bytes_per_second=rates.bytes_per_second * part.bandwidth_share,
        restored_per_second={kind: rate * part.bandwidth_share for kind, rate in rates.restored_per_second.items()},
    )
