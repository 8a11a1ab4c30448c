"""The usage of an attempt, and how it ended: published in events, and added up from the ledger."""

from typing import Annotated

from msgspec import Meta, field

from training_schemas.base import Wire


class Usage(Wire, frozen=True, kw_only=True):
    """The usage of an attempt so far: seconds of its GPU, added up over several, and US dollars where it has a price.

    ``wasted_gpu_seconds`` of them, known once the attempt has ended, led to nothing that is kept: they came after the
    last checkpoint. ``energy_wh``, watt-hours of its GPUs, is also known then, if they count them.
    """

    gpu_seconds: float
    cost_usd: float | None = field(default=None, name="costUSD")
    wasted_gpu_seconds: float = 0.0
    energy_wh: float | None = None


class AttemptSummary(Wire, frozen=True, kw_only=True):
    """The summary of one attempt at a job: how it ended, and what it used.

    ``outcome`` is ``completed``, ``failed``, ``cancelled``, ``released`` or ``lost``: the end of a lost attempt was not
    recorded, and its ``usage`` is what it had used at its last checkpoint. ``reason`` is that of the failure.
    """

    attempt: Annotated[int, Meta(ge=1)]
    worker: str
    outcome: str
    usage: Usage
    reason: str | None = None
    message: str | None = None
