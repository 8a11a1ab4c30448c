"""The rates: how long steps have taken on this host, by GPU, engine and settings; plans made here use them."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import structlog

from training_presets.workload import Workload
from training_schemas.jobs import EngineName, TrainingType
from training_schemas.plans import MeasuredRate
from training_worker.gpu.devices import GpuDevice

FILE = "rates.json"

# Enough for every setting that a host sees in a while; the oldest is forgotten first.
MOST_RATES = 500

# How many of them are published: on each connection again.
MOST_PUBLISHED = 50

# How much the newest measurement counts against those before it.
NEWEST = 0.5

# What the length of a step does not depend on.
IRRELEVANT = ("steps", "images", "validation_prompts", "validation_inference_steps", "checkpoints")

# Prefix of the kind of a simulated GPU.
SIMULATED = "simulated "

# The default settings, as they are written.
USUAL = [
    (field.name, msgspec.to_builtins(field.default)) for field in msgspec.structs.fields(Workload) if not field.required
]

log = structlog.get_logger()


class StepRates:
    """Measured seconds a step, kept in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._seconds: dict[str, float] = self._load()

    def find(self, device: GpuDevice, engine: EngineName, work: Workload) -> float | None:
        """Return the seconds a step of such a workload by an engine on such a GPU; None if there has been none."""
        return self._seconds.get(_key(device, engine, work))

    def note(self, device: GpuDevice, engine: EngineName, work: Workload, seconds: float) -> None:
        """Record how long a step of such a workload took on average."""
        key = _key(device, engine, work)
        before = self._seconds.pop(key, None)
        self._seconds[key] = seconds if before is None else NEWEST * seconds + (1 - NEWEST) * before
        for oldest in list(self._seconds)[:-MOST_RATES]:
            del self._seconds[oldest]
        self._save()

    def newest(self, devices: Iterable[GpuDevice]) -> list[MeasuredRate]:
        """Return the rates of these kinds of GPUs that were measured last, the newest first."""
        kinds = {_kind(device) for device in devices}
        known = ((*key.partition(" {"), seconds) for key, seconds in reversed(self._seconds.items()))
        rates = (
            _published_rate(kind, mark + settings, seconds) for kind, mark, settings, seconds in known if kind in kinds
        )
        return list(islice((rate for rate in rates if rate is not None), MOST_PUBLISHED))

    def _load(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            # They are measured again.
            log.warning("rates_unreadable", path=str(self._path), error=str(error))
            return {}

    def _save(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps(self._seconds), "utf-8")
            new.replace(self._path)
        except OSError as error:
            log.warning("rates_not_saved", path=str(self._path), error=str(error))


def _key(device: GpuDevice, engine: EngineName, work: Workload) -> str:
    settings = {name: value for name, value in msgspec.to_builtins(work).items() if name not in IRRELEVANT}
    settings["engine"] = engine
    return f"{_kind(device)} {json.dumps(settings, sort_keys=True)}"


def _kind(device: GpuDevice) -> str:
    return f"{SIMULATED if device.simulated else ''}{device.name}"


def _published_rate(kind: str, text: str, seconds: float) -> MeasuredRate | None:
    """Return a rate as events have it; None if its settings are not what this version writes."""
    try:
        settings = msgspec.json.decode(text, type=dict[str, Any])
        kind_of_training, engine = TrainingType(settings.pop("training_type")), EngineName(settings.pop("engine"))
    except (msgspec.MsgspecError, KeyError, ValueError):
        return None
    return MeasuredRate(
        card=kind.removeprefix(SIMULATED),
        training_type=kind_of_training,
        engine=engine,
        seconds_per_step=seconds,
        gpu_count=settings.pop("gpu_count", 1),
        settings={_camel(name): value for name, value in settings.items() if (name, value) not in USUAL},
    )


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
