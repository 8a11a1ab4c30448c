"""The cards of this host, by NVML; where there is none, those that the settings make up."""

import re
import warnings
from types import ModuleType

import msgspec

from training_presets.prices import usd_per_hour
from training_presets.tiers import tier_of
from training_schemas.events import Gpu
from training_schemas.jobs import MemoryTier
from training_worker.errors import NoGpuError, SettingsError

MIB = 1024 * 1024
STAND_IN = re.compile(r"^(?P<name>[^:]+):(?P<memory>[1-9][0-9]*)MiB\Z")


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One card: memory in MiB, price in US dollars an hour where it is known."""

    uuid: str
    name: str
    memory_mib: int
    simulated: bool
    usd_per_hour: float | None

    @property
    def tier(self) -> MemoryTier | None:
        """What the card offers; None if it is too small for any job."""
        return tier_of(self.memory_mib)

    def describe(self) -> Gpu:
        """The card as events show it."""
        return Gpu(uuid=self.uuid, name=self.name, memory_mib=self.memory_mib, tier=self.tier)


def find_cards(stand_ins: list[str], prices: dict[str, float]) -> list[Card]:
    """This host's cards. The stand-ins count only where NVML shows none. Raises `NoGpuError`, `SettingsError`."""
    cards = _nvml_cards(prices) or [_stand_in(text, number, prices) for number, text in enumerate(stand_ins)]
    if not cards:
        raise NoGpuError("cannot start: NVML shows no GPU, and the settings list none under `gpus`")
    return cards


def _stand_in(text: str, number: int, prices: dict[str, float]) -> Card:
    match = STAND_IN.match(text)
    if match is None:
        raise SettingsError(f"cannot read settings: gpus[{number}]: expected 'NAME:MEMORYMiB', got {text!r}")
    name, memory = match["name"], int(match["memory"])
    return Card(
        uuid=f"SIMULATED-{number}",
        name=name,
        memory_mib=memory,
        simulated=True,
        usd_per_hour=usd_per_hour(name, memory, prices),
    )


def _nvml_cards(prices: dict[str, float]) -> list[Card]:
    with warnings.catch_warnings():
        # The shell distribution called pynvml warns on import where somebody has installed it too.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml  # noqa: PLC0415 - only the daemon needs the driver, not all who import the package

    try:
        return _ask(pynvml, prices)
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        # A driver that is there and broken is no reason to train on a stand-in.
        raise NoGpuError(f"cannot start: NVML: {error}") from None


def _ask(nvml: ModuleType, prices: dict[str, float]) -> list[Card]:
    nvml.nvmlInit()
    try:
        return [_nvml_card(nvml, index, prices) for index in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def _nvml_card(nvml: ModuleType, index: int, prices: dict[str, float]) -> Card:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB
    return Card(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=name,
        memory_mib=memory,
        simulated=False,
        usd_per_hour=usd_per_hour(name, memory, prices),
    )
