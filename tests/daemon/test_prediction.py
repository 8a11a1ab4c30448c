"""What a run took, beside what its plan said."""

import pytest
from msgspec.structs import replace
from tests.daemon.test_attempt import CARD, RESULT, STAND_IN

from training_schemas.plans import Prediction
from training_worker.cards import Card
from training_worker.outcome import Done
from training_worker.prediction import overruns

PREDICTED = Prediction(card="NVIDIA L4", peak_vram_mib=10_000, seconds_per_step=2.0, gpu_seconds=100.0)


def done(peak: int | None, step: float | None) -> Done:
    """A run that ended well."""
    return Done(record=replace(RESULT, peak_vram_mib=peak), seconds_per_step=step)


@pytest.mark.parametrize(
    ("peak", "step", "words"),
    [
        (9_000, 4.9, []),
        (None, None, []),
        (10_001, 1.0, ["the trainer held 10001 MiB of its card, and the plan said 10000"]),
        (9_000, 5.1, ["a step took 5.1 s, and the plan said 2"]),
    ],
)
def test_what_was_clearly_more_than_planned_is_told(peak: int | None, step: float | None, words: list[str]) -> None:
    """Memory by any amount, for that it was there may have been luck; time by more than the model is known to err."""
    assert overruns(PREDICTED, done(peak, step), CARD) == words


@pytest.mark.parametrize(("predicted", "card"), [(None, CARD), (PREDICTED, STAND_IN)])
def test_nothing_is_told_where_nothing_can_be_compared(predicted: Prediction | None, card: Card) -> None:
    """No plan, or no card."""
    assert overruns(predicted, done(20_000, 50.0), card) == []
