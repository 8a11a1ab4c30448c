"""The losses of a run as an image."""

import math
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from training_worker.engines.diffusers.export.loss_curve import (
    BOTTOM,
    FAINT,
    LEFT,
    RIGHT,
    SCALE,
    STRONG,
    TOP,
    loss_curve,
    running_means,
)

pytestmark = pytest.mark.trainer

SIZE = (960, 480)
PLOT = (LEFT // SCALE, TOP // SCALE + 2, SIZE[0] - RIGHT // SCALE, SIZE[1] - BOTTOM // SCALE - 2)


def heights(path: Path, colour: str) -> dict[int, list[int]]:
    """The pixels from the top that have a colour, or almost, by column of the plot."""
    with Image.open(path) as curve:
        assert SIZE == curve.size
        pixels = curve.convert("RGB")
    difference = ImageChops.difference(pixels, Image.new("RGB", SIZE, colour))
    near = ImageChops.lighter(ImageChops.lighter(*difference.split()[:2]), difference.split()[2]).tobytes()
    left, top, right, bottom = PLOT
    columns = {x: [y for y in range(top, bottom) if near[y * SIZE[0] + x] < 50] for x in range(left, right)}
    return {x: column for x, column in columns.items() if column}


def test_a_mean_that_falls_is_drawn_from_high_to_low(tmp_path: Path) -> None:
    """From one side of the plot to the other."""
    loss_curve([(step, 1 - step / 200) for step in range(1, 201)], tmp_path / "loss.png")

    mean = heights(tmp_path / "loss.png", STRONG)

    tops = [min(column) for _, column in sorted(mean.items())]
    assert sorted(tops) == tops
    assert tops[-1] - tops[0] > 200
    assert PLOT[0] == pytest.approx(min(mean), abs=3)
    assert PLOT[2] == pytest.approx(max(mean), abs=3)


def test_the_mean_remembers_ten_steps_at_least() -> None:
    """By the definition: weights of 0.9 to the power of a value's age, which are divided by their sum."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]

    means = [mean for _, mean in running_means(list(enumerate(losses)))]

    expected = []
    for now in range(len(losses)):
        weights = [0.9 ** (now - then) for then in range(now + 1)]
        weighted = sum(weight * loss for weight, loss in zip(weights, losses, strict=False))
        expected.append(weighted / sum(weights))
    assert expected == pytest.approx(means)


def test_a_single_step_is_a_dot_in_the_middle(tmp_path: Path) -> None:
    """There is no line through one point."""
    loss_curve([(1, 0.4)], tmp_path / "loss.png")

    mean = heights(tmp_path / "loss.png", STRONG)

    assert (PLOT[0] + PLOT[2]) / 2 == pytest.approx(sum(mean) / len(mean), abs=2)
    assert 4 <= len(mean) <= 20


@pytest.mark.parametrize("loss", [0.0, 0.1, -1.0, 1e-30, 1e30])
def test_equal_losses_are_a_level_line(tmp_path: Path, loss: float) -> None:
    """From the first step to the last, whatever their size."""
    loss_curve([(step, loss) for step in range(1, 101)], tmp_path / "loss.png")

    mean = heights(tmp_path / "loss.png", STRONG)

    tops = [min(column) for column in mean.values()]
    assert max(tops) - min(tops) <= 1
    assert PLOT[2] - PLOT[0] == pytest.approx(len(mean), abs=4)


def test_of_very_many_steps_none_is_lost(tmp_path: Path) -> None:
    """One loss of 100,000 that is far above the others reaches the top, and does not flatten them."""
    losses = [(step, 0.5 + 0.1 * math.sin(step)) for step in range(100_000)]
    losses[70_000] = (70_000, 9.0)

    loss_curve(losses, tmp_path / "loss.png")

    raw = heights(tmp_path / "loss.png", FAINT)
    spike = PLOT[0] + 0.7 * (PLOT[2] - PLOT[0])
    highest = [x for x, column in raw.items() if min(column) < PLOT[1] + 5]
    assert highest
    assert all(spike == pytest.approx(x, abs=2) for x in highest)
    assert max(len(column) for column in raw.values()) > 200


@pytest.mark.parametrize("losses", [[], [(1, math.nan)], [(1, math.inf), (2, math.nan)]])
def test_without_a_finite_loss_the_chart_is_empty(tmp_path: Path, losses: list[tuple[int, float]]) -> None:
    """A chart is nothing that a run should fail of."""
    loss_curve(losses, tmp_path / "loss.png")

    assert {} == heights(tmp_path / "loss.png", STRONG)
    assert {} == heights(tmp_path / "loss.png", FAINT)


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    """The rest is drawn as without them."""
    losses = [(step, float(step)) for step in range(20)]

    loss_curve(losses, tmp_path / "without.png")
    loss_curve([*losses[:10], (10, math.nan), (10, -math.inf), *losses[10:]], tmp_path / "with.png")

    assert (tmp_path / "without.png").read_bytes() == (tmp_path / "with.png").read_bytes()
