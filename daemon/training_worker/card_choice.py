"""Which of a host's cards a daemon uses: all of them, or those that the settings name."""

from collections.abc import Sequence

from training_worker.cards import Card
from training_worker.errors import SettingsError


def chosen(cards: Sequence[Card], names: Sequence[str]) -> list[Card]:
    """The cards that are named, by UUID or by index in NVML's order; all, without names.

    Raises `SettingsError` if one is not there: a daemon that is meant for it has nothing else to train on.
    """
    if not names:
        return list(cards)
    known = {str(index): card for index, card in enumerate(cards)} | {card.uuid: card for card in cards}
    for name in names:
        if name not in known:
            there = ", ".join(card.uuid for card in cards)
            raise SettingsError(f"cannot start: only_gpus names {name!r}, and this host has {there}")
    # A card that is named twice is one card; the order is the host's.
    wanted = {known[name].uuid for name in names}
    return [card for card in cards if card.uuid in wanted]
