"""The catalogue of cards, and what an hour of them costs: the operator's price first, then the catalogue's."""

import pytest

from training_presets.cards import CardSpec, catalogue, cost_usd, find_card, named_card, usd_per_hour


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
        ("NVIDIA H100 NVL", 95830, 3.19),
    ],
)
def test_a_known_card_has_its_price_by_its_nvml_name(card: str, memory_mib: int, price: float) -> None:
    """Two sizes of the A100 share a name and differ in memory."""
    assert usd_per_hour(card, memory_mib, {}) == price


@pytest.mark.parametrize("card", ["NVIDIA GeForce GTX 1080", "NVIDIA RTX A500", "Tesla P100", ""])
def test_a_card_that_nobody_knows_has_no_price(card: str) -> None:
    """No price is better than one that was invented."""
    assert usd_per_hour(card, 24564, {}) is None


@pytest.mark.parametrize("card", ["NVIDIA RTX A1000", "NVIDIA RTX A1000 6GB Laptop GPU"])
def test_a_small_workstation_card_is_not_billed_as_an_a100(card: str) -> None:
    """A card is known by the parts of its name, not by the beginning of one."""
    assert usd_per_hour(card, 8192, {}) is None


def test_the_operators_price_goes_before_the_catalogue() -> None:
    """Even where the catalogue's name is longer: the operator knows the contract."""
    assert usd_per_hour("NVIDIA GeForce RTX 4090", 24564, {"4090": 0.1}) == 0.1


def test_a_card_that_the_operator_does_not_list_keeps_the_catalogues_price() -> None:
    """One override does not change other cards."""
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


@pytest.mark.parametrize("card", catalogue().cards, ids=lambda card: f"{card.name}-{card.memory_mib}")
def test_every_card_of_the_catalogue_can_be_found_and_checked(card: CardSpec) -> None:
    """By its own name and memory; it holds what it must at least; and a price has somebody who named it, and when."""
    assert find_card(f"NVIDIA {card.name}", card.memory_mib) == card
    assert card.at_least_mib <= card.memory_mib
    assert card.peak_tflops is not None
    assert card.sustained_tflops < card.peak_tflops
    assert (card.usd_per_hour is None) == (card.source == "") == (card.date == "")
    if card.usd_per_hour is not None and card.usd_range is not None:
        assert card.usd_range[0] <= card.usd_per_hour <= card.usd_range[1]


def test_no_two_rows_of_the_catalogue_describe_the_same_card() -> None:
    """Name and memory distinguish rows."""
    rows = [(card.name, card.memory_mib) for card in catalogue().cards]

    assert sorted(set(rows)) == sorted(rows)


@pytest.mark.parametrize(
    "name",
    [
        "RTX 3060",
        "RTX 3090",
        "RTX 4080",
        "RTX 4090",
        "RTX 5090",
        "RTX A4000",
        "RTX A5000",
        "RTX A6000",
        "L4",
        "L40",
        "L40S",
        "A10G",
        "A40",
        "V100 16GB",
        "V100 32GB",
        "A100 40GB",
        "A100 80GB",
        "H100 PCIe",
        "H100",
        "H200",
        "B200",
        "T4",
    ],
)
def test_the_cards_that_people_rent_are_in_the_catalogue(name: str) -> None:
    """Each as a person calls it."""
    assert named_card(name) is not None


@pytest.mark.parametrize(
    ("called", "name", "memory_mib"),
    [
        ("4090", "RTX 4090", 24564),
        ("rtx 4090", "RTX 4090", 24564),
        ("A5000", "RTX A5000", 24564),
        ("A100", "A100", 40960),
        ("A100 80GB", "A100", 81920),
        ("A100-80", "A100", 81920),
        ("NVIDIA A100-SXM4-80GB", "A100", 81920),
        ("V100 32", "V100", 32768),
        ("Tesla T4", "T4", 15360),
    ],
)
def test_a_card_is_found_by_what_people_call_it(called: str, name: str, memory_mib: int) -> None:
    """With or without its maker, its line, or its size."""
    card = named_card(called)

    assert card is not None
    assert (card.name, card.memory_mib) == (name, memory_mib)


@pytest.mark.parametrize("called", ["", "RTX", "GTX 1080", "MI300X"])
def test_a_card_that_nobody_knows_is_none(called: str) -> None:
    """Rather than the next best."""
    assert named_card(called) is None


def test_a_laptop_card_is_not_the_one_that_it_is_named_after() -> None:
    """It has less memory and is slower."""
    assert find_card("NVIDIA GeForce RTX 4090 Laptop GPU", 16376) is None


def test_a_slice_is_a_part_of_its_card() -> None:
    """Its own memory; of speed, bandwidth and price what its share is."""
    whole, part = find_card("NVIDIA A100-SXM4-80GB", 81920), find_card("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192)

    assert whole is not None
    assert part is not None
    assert part.memory_mib == pytest.approx(40 * 1024, rel=0.05)
    assert part.sustained_tflops == pytest.approx(whole.sustained_tflops * 3 / 7, rel=0.1)
    assert part.bandwidth_gbs == whole.bandwidth_gbs / 2
    assert part.usd_per_hour == pytest.approx(2.45 * 3 / 7, rel=0.1)


def test_the_operators_cards_go_before_the_catalogue() -> None:
    """Whether it knows them or not."""
    own = CardSpec(name="RTX 4090", memory_mib=49140, at_least_mib=40000, sustained_tflops=90, bandwidth_gbs=1000)
    odd = CardSpec(name="XYZ 1", memory_mib=8192, sustained_tflops=10, bandwidth_gbs=100, usd_per_hour=0.5)

    assert find_card("NVIDIA GeForce RTX 4090", 49140, [own, odd]) == own
    assert find_card("NVIDIA GeForce RTX 4090", 24564, [own, odd]) == named_card("RTX 4090")
    assert usd_per_hour("Acme XYZ 1", 8192, {}, [own, odd]) == 0.5
