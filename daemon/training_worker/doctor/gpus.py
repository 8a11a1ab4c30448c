"""The cards of the settings, looked at once for all checks: what a worker would train on, and what is wrong with it."""

import msgspec

from training_worker.errors import NoGpuError, SettingsError
from training_worker.gpu import nvml
from training_worker.gpu.devices import Card, worker_cards
from training_worker.gpu.health import CardHealth
from training_worker.gpu.nvml import SEPARATOR, DriverError
from training_worker.settings import Settings


class HostCards(msgspec.Struct, frozen=True, kw_only=True):
    """A card for each slot; none, and an error, where a worker would not start.

    ``sick`` are the UUIDs of those that a worker would quarantine now, with the reason.
    """

    cards: list[Card] = []
    error: NoGpuError | SettingsError | None = None
    sick: dict[str, str] = {}


def look_at_cards(settings: Settings) -> HostCards:
    """Find the cards as a worker does, and read each of them once."""
    try:
        cards = worker_cards(settings)
    except (NoGpuError, SettingsError) as error:
        return HostCards(error=error)
    unreadable = {card.uuid: card.fault for card in cards if card.fault is not None}
    readable = [card for card in cards if not card.simulated and card.fault is None]
    uuids = [uuid for card in readable for uuid in card.uuid.split(SEPARATOR)]
    return HostCards(cards=cards, sick=unreadable | (_sick(uuids, settings) if uuids else {}))


def _sick(uuids: list[str], settings: Settings) -> dict[str, str]:
    try:
        readings = nvml.ask(nvml.read(uuids), settings.driver_timeout)
    except DriverError as error:
        return dict.fromkeys(uuids, str(error))
    found = {uuid: CardHealth(settings.hottest_card, settings.healthy_probes) for uuid in uuids}
    for uuid, health in found.items():
        health.take(readings[uuid])
    return {uuid: health.quarantined for uuid, health in found.items() if health.quarantined is not None}
