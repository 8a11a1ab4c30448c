"""A daemon for some of a host's cards."""

import pytest

from training_worker.card_choice import chosen
from training_worker.cards import Card
from training_worker.errors import SettingsError

CARDS = [
    Card(uuid=f"GPU-{letter}", name="Card", memory_mib=24_564, simulated=False, usd_per_hour=None) for letter in "abc"
]


@pytest.mark.parametrize(
    ("names", "uuids"),
    [
        ([], ["GPU-a", "GPU-b", "GPU-c"]),
        (["1"], ["GPU-b"]),
        (["GPU-c"], ["GPU-c"]),
        (["2", "GPU-a", "0"], ["GPU-a", "GPU-c"]),
    ],
)
def test_cards_are_named_by_uuid_or_index(names: list[str], uuids: list[str]) -> None:
    """In the host's order, each once; all of them if none is named."""
    assert [card.uuid for card in chosen(CARDS, names)] == uuids


@pytest.mark.parametrize("name", ["3", "-1", "GPU-x", ""])
def test_a_card_that_is_not_there_is_refused(name: str) -> None:
    """The message has what was asked for, and what there is."""
    with pytest.raises(SettingsError, match=f"only_gpus names '{name}', and this host has GPU-a, GPU-b, GPU-c"):
        chosen(CARDS, ["0", name])
