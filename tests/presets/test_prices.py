"""What an hour of a card costs: the operator's word first, then the catalogue's, and else nobody's."""

import pytest

from training_presets.prices import CardPrice, card_prices, cost_usd, usd_per_hour


@pytest.mark.parametrize(
    ("card", "memory_mib", "price"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, 0.60),
        ("NVIDIA RTX A5000", 24564, 0.68),
        ("NVIDIA L40S", 46068, 1.91),
        ("NVIDIA A100-SXM4-40GB", 40960, 1.48),
        ("NVIDIA A100-PCIE-40GB", 40536, 1.48),
        ("NVIDIA A100-SXM4-80GB", 81920, 2.45),
        ("NVIDIA A100 80GB PCIe", 81251, 2.45),
        ("NVIDIA H100 80GB HBM3", 81559, 4.76),
        ("NVIDIA H100 NVL", 95830, 4.76),
    ],
)
def test_a_known_card_has_its_price_by_its_nvml_name(card: str, memory_mib: int, price: float) -> None:
    """Two sizes of the A100 share a name and differ in memory."""
    assert usd_per_hour(card, memory_mib, {}) == price


@pytest.mark.parametrize("card", ["NVIDIA A10G", "NVIDIA L40", "NVIDIA L4", "Tesla T4", "NVIDIA H200", "RTX A500", ""])
def test_a_card_that_nobody_knows_has_no_price(card: str) -> None:
    """No price is better than one that was made up."""
    assert usd_per_hour(card, 24564, {}) is None


@pytest.mark.parametrize("card", ["NVIDIA RTX A1000", "NVIDIA RTX A1000 6GB Laptop GPU"])
def test_a_small_workstation_card_is_not_billed_as_an_a100(card: str) -> None:
    """A card is known by the words of its name, not by the beginning of one."""
    assert usd_per_hour(card, 8192, {}) is None


def test_the_operators_price_goes_before_the_catalogue() -> None:
    """Even where the catalogue's name is longer: the operator knows the contract."""
    assert usd_per_hour("NVIDIA GeForce RTX 4090", 24564, {"4090": 0.1}) == 0.1


def test_a_card_that_the_operator_does_not_list_keeps_the_catalogues_price() -> None:
    """One override says nothing about other cards."""
    assert usd_per_hour("NVIDIA L40S", 46068, {"RTX 4090": 0.1}) == 1.91


def test_the_longest_of_the_operators_names_wins_whatever_their_order() -> None:
    """A particular name goes before a general one."""
    prices = {"RTX": 1.0, "RTX A6000": 3.0, "A6000": 2.0}

    assert usd_per_hour("NVIDIA RTX A6000", 49140, prices) == 3.0
    assert usd_per_hour("NVIDIA A6000", 49140, prices) == 2.0
    assert usd_per_hour("NVIDIA RTX A4000", 16376, prices) == 1.0


def test_a_card_that_costs_nothing_is_not_a_card_without_a_price() -> None:
    """Zero is a price: the operator owns the card."""
    assert usd_per_hour("NVIDIA L40S", 46068, {"L40S": 0.0}) == 0.0
    assert cost_usd(3600, 0.0) == 0.0


def test_cost_is_seconds_times_the_hourly_price() -> None:
    """US dollars; an hour has 3600 seconds."""
    assert cost_usd(5400, 2.0) == 3.0
    assert cost_usd(0, 2.0) == 0.0
    assert cost_usd(5400, None) is None


@pytest.mark.parametrize("price", card_prices(), ids=lambda price: f"{price.name}-{price.memory_mib}")
def test_every_row_of_the_catalogue_is_a_price_that_somebody_named(price: CardPrice) -> None:
    """A figure without a source cannot be checked by anybody."""
    assert price.source
    assert price.name
    assert 0 < price.usd_per_hour < 100


def test_no_two_rows_of_the_catalogue_speak_of_the_same_card() -> None:
    """Name and least memory tell rows apart."""
    rows = [(price.name, price.memory_mib) for price in card_prices()]

    assert sorted(set(rows)) == sorted(rows)
