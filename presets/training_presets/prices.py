"""Prices of cards by the hour."""

import re
import tomllib
from functools import cache
from pathlib import Path

import msgspec


class CardPrice(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an hour of a card usually costs, in US dollars, and who says so."""

    name: str
    usd_per_hour: float
    source: str
    memory_mib: int = 0


@cache
def card_prices() -> list[CardPrice]:
    """The catalogue."""
    text = Path(__file__).with_name("cards.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text)["cards"], list[CardPrice])


def usd_per_hour(card: str, memory_mib: int, overrides: dict[str, float]) -> float | None:
    """The price of a card by its NVML name; the operator's own ``overrides`` go first. None where nobody knows."""
    own = [name for name in overrides if _names(name, card)]
    if own:
        return overrides[max(own, key=len)]
    known = [price for price in card_prices() if _names(price.name, card) and memory_mib >= price.memory_mib]
    return max(known, key=lambda price: (len(price.name), price.memory_mib)).usd_per_hour if known else None


def _names(words: str, card: str) -> bool:
    # Whole words: an RTX A1000 is no A100.
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(words)}(?![A-Za-z0-9])", card) is not None


def cost_usd(seconds: float, hourly: float | None) -> float | None:
    """What so many seconds cost; None where the price is not known."""
    return None if hourly is None else seconds * hourly / 3600
