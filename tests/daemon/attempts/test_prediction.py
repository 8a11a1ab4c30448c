"""What a run took, beside what its plan said."""

import pytest
from msgspec.structs import replace
from tests.daemon.attempts.test_run_spec import CARD, RESULT, STAND_IN

from training_schemas.plans import Prediction
from training_schemas.usage import Usage
from training_worker.attempts.outcome import Done
from training_worker.attempts.prediction import overruns
from training_worker.gpu.devices import GpuDevice

PREDICTED = Prediction(card="NVIDIA L4", peak_vram_mib=10_000, seconds_per_step=2.0, gpu_seconds=100.0)


def done(peak: int | None, step: float | None, gpu_seconds: float = 100.0) -> Done:
    """A run that ended well."""
    record = replace(RESULT, peak_vram_mib=peak)
    return Done(record=record, seconds_per_step=step, usage=Usage(gpu_seconds=gpu_seconds))


@pytest.mark.parametrize(
    ("peak", "step", "words"),
    [
        (9_000, 4.9, []),
        (None, None, []),
        # The plan's 10,000 MiB hold 614 of the driver's own, which the trainer does not see.
        (9_387, 1.0, ["the trainer held 9387 MiB of its GPU, and the plan predicted 9386"]),
        (9_000, 5.1, ["a step took 5.1 s, and the plan predicted 2"]),
    ],
)
def test_what_was_clearly_more_than_planned_is_told(peak: int | None, step: float | None, words: list[str]) -> None:
    """Memory by any amount, for that it was there may have been luck; time by more than the model is known to err."""
    assert overruns(PREDICTED, done(peak, step), CARD) == words


def test_an_attempt_that_took_longer_than_is_likely_is_told() -> None:
    """Whatever it was that took so long: the estimate's own range is up to 1.5 times what it says."""
    assert overruns(PREDICTED, done(9_000, 2.0, 149.0), CARD) == []
    assert overruns(PREDICTED, done(9_000, 2.0, 151.0), CARD) == [
        "the attempt took 151 GPU-seconds, and the plan predicted 100"
    ]


@pytest.mark.parametrize(("predicted", "device"), [(None, CARD), (PREDICTED, STAND_IN)])
def test_nothing_is_told_where_nothing_can_be_compared(predicted: Prediction | None, device: GpuDevice) -> None:
    """No plan, or no card."""
    assert overruns(predicted, done(20_000, 50.0), device) == []
