"""The plan of a job and what it really took: published in events, so that estimates can be checked."""

from typing import Any

from msgspec import field

from training_schemas.base import Wire
from training_schemas.jobs import EngineName, MemoryTier, TrainingType


class SettingChange(Wire, frozen=True, kw_only=True):
    """A setting, by its name on the wire, that differs from the job's or the preset's value; and why."""

    setting: str
    before: Any
    after: Any
    why: str


class Prediction(Wire, frozen=True, kw_only=True):
    """The prediction of what a job takes on one kind of GPU, or on several of it.

    ``gpu_seconds`` and ``cost_usd`` are for the whole job, on all its GPUs; the peak is each GPU's.
    ``from_measurements`` states that its worker has measured the step before, on such a GPU with such settings.
    """

    card: str
    peak_vram_mib: int
    seconds_per_step: float
    gpu_seconds: float
    cost_usd: float | None = field(default=None, name="costUSD")
    from_measurements: bool = False


class TierPrediction(Wire, frozen=True, kw_only=True):
    """What a job would take on the card that a tier is priced by, with the settings that cost least there."""

    tier: MemoryTier
    predicted: Prediction


class Measured(Wire, frozen=True, kw_only=True):
    """The measurement of a job: of all its attempts together, except the peak and the step, which are the last one's.

    ``peak_vram_mib`` is what the trainer held of its GPU, without the driver's own part; None where there is no GPU.
    """

    gpu_seconds: float
    cost_usd: float | None = field(default=None, name="costUSD")
    peak_vram_mib: int | None = None
    seconds_per_step: float | None = None


class MeasuredRate(Wire, frozen=True, kw_only=True):
    """The duration of an optimizer step on one kind of GPU, or on ``gpu_count`` of it together.

    It is a mean in which the newest job counts as much as all before it. ``settings`` are those that a step depends on,
    without those that have their usual value.
    """

    card: str
    training_type: TrainingType
    engine: EngineName
    seconds_per_step: float
    gpu_count: int = 1
    settings: dict[str, Any] = {}
