"""Which of a host's cards a daemon uses, and which of them together: all of them, or as the settings say."""

from collections.abc import Sequence

from training_worker.cards import Card, find_cards, grouped
from training_worker.errors import SettingsError
from training_worker.settings import Settings


def worker_cards(settings: Settings) -> list[Card]:
    """What a worker with these settings trains on, on this host: a card for each of its slots.

    Raises `NoGpuError` if there is none, and `SettingsError` if the settings do not fit what there is.
    """
    found = find_cards(settings.gpus, settings.prices, settings.cards)
    return grouped(chosen(found, settings.only_gpus), settings.gpus_per_job)


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
