"""The rates: how long steps have taken on this host, by card and settings; plans made here use them."""

import json
from pathlib import Path

import msgspec
import structlog

from training_presets.workload import Workload
from training_worker.cards import Card

FILE = "rates.json"

# Enough for every setting that a host sees in a while; the oldest is forgotten first.
MOST_RATES = 500

# How much the newest measurement counts against those before it.
NEWEST = 0.5

# What the length of a step does not depend on.
IRRELEVANT = ("steps", "images", "validation_prompts", "validation_inference_steps", "checkpoints")

log = structlog.get_logger()


class Rates:
    """Measured seconds a step, kept in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._seconds: dict[str, float] = self._load()

    def find(self, card: Card, work: Workload) -> float | None:
        """Seconds a step of such a workload on such a card; None if there has been none."""
        return self._seconds.get(_key(card, work))

    def note(self, card: Card, work: Workload, seconds: float) -> None:
        """A step of such a workload took so long on average."""
        key = _key(card, work)
        before = self._seconds.pop(key, None)
        self._seconds[key] = seconds if before is None else NEWEST * seconds + (1 - NEWEST) * before
        for oldest in list(self._seconds)[:-MOST_RATES]:
            del self._seconds[oldest]
        self._save()

    def _load(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            # They are measured anew.
            log.warning("rates_unreadable", path=str(self._path), error=str(error))
            return {}

    def _save(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps(self._seconds), "utf-8")
            new.replace(self._path)
        except OSError as error:
            log.warning("rates_not_saved", path=str(self._path), error=str(error))


def _key(card: Card, work: Workload) -> str:
    settings = {name: value for name, value in msgspec.to_builtins(work).items() if name not in IRRELEVANT}
    kind = "simulated " if card.simulated else ""
    return f"{kind}{card.name} {json.dumps(settings, sort_keys=True)}"
