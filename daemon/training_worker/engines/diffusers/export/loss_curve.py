"""The losses of a run as an image: that of each step, faint, and their running mean."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec
from PIL import Image, ImageDraw, ImageFont

# Pixels. All is drawn twice as large and then made smaller, which smooths the lines.
SCALE = 2
WIDTH, HEIGHT = 960 * SCALE, 480 * SCALE
LEFT, TOP, RIGHT, BOTTOM = 76 * SCALE, 52 * SCALE, 40 * SCALE, 58 * SCALE
GAP = 8 * SCALE
FONT, TITLE = 14 * SCALE, 18 * SCALE
THIN, THICK = SCALE, 3 * SCALE

PAPER = "#ffffff"
INK = "#24292f"
GREY = "#57606a"
GRID = "#e6e9ec"
FAINT = "#a3bfe8"
STRONG = "#1f5fbf"

TICKS = 6
# Digits.
LONGEST_LABEL = 6
# The mean is mostly that of this share of the run, and of so many steps at least.
MEMORY = 1 / 40
SHORTEST_MEMORY = 10
# So many of the lowest and of the highest losses may lie outside, and do not flatten the rest.
OUTLIERS = 0.01
# Above and below: a share of what lies between the lowest and the highest, and of the loss itself at least.
MARGIN = 0.06
LEAST_MARGIN = 0.01

Points = Sequence[tuple[float, float]]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """The range of the chart: steps from the left to the right, losses from the bottom to the top."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        """The pixel of a step, from the left."""
        return LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        """The pixel of a loss, from the top; one that lies outside is at the edge."""
        share = (min(max(loss, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def loss_curve(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Draw a PNG of losses by step, in the order of the steps; those that are not finite are left out."""
    points = [(float(step), loss) for step, loss in losses if math.isfinite(loss)]
    frame = _frame(points)
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    _draw_axes(draw, frame)
    _draw_line(draw, frame, points, FAINT, THIN)
    _draw_line(draw, frame, list(running_means(points)), STRONG, THICK)
    _draw_legend(draw)
    image.reduce(SCALE).save(path)


def running_means(points: Points) -> Iterator[tuple[float, float]]:
    """Average exponentially, beginning at the first value: ``m = d m + (1 - d) x``, over ``1 - d^n`` after n values."""
    decay = 1 - 1 / max(SHORTEST_MEMORY, len(points) * MEMORY)
    total, weight = 0.0, 0.0
    for step, loss in points:
        total = decay * total + (1 - decay) * loss
        weight = decay * weight + (1 - decay)
        yield step, total / weight


def _frame(points: Points) -> Frame:
    losses = sorted(loss for _, loss in points)
    outliers = int(len(losses) * OUTLIERS)
    low, high = (losses[outliers], losses[-1 - outliers]) if losses else (0.0, 0.0)
    first, last = (points[0][0], points[-1][0]) if points else (0.0, 0.0)
    # One step alone, and losses that are all equal, are in the middle of something.
    beside = 0 if last > first else 1
    margin = max((high - low) * MARGIN, max(abs(low), abs(high)) * LEAST_MARGIN) or 1
    return Frame(first=first - beside, last=last + beside, low=low - margin, high=high + margin)


def _draw_axes(draw: ImageDraw.ImageDraw, frame: Frame) -> None:
    font, bottom = ImageFont.load_default(FONT), HEIGHT - BOTTOM
    unit = _unit(frame.high - frame.low)
    for loss in _ticks(frame.low, frame.high, unit):
        y = frame.y(loss)
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID, width=THIN)
        draw.text((LEFT - GAP, y), _label(loss, unit), fill=GREY, font=font, anchor="rm")
    for step in _ticks(frame.first, frame.last, max(1, _unit(frame.last - frame.first))):
        x = frame.x(step)
        draw.line((x, bottom, x, bottom + GAP / 2), fill=GREY, width=THIN)
        draw.text((x, bottom + GAP), f"{step:,.0f}", fill=GREY, font=font, anchor="mt")
    draw.line((LEFT, bottom, WIDTH - RIGHT, bottom), fill=GREY, width=THIN)
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - GAP), "step", fill=GREY, font=font, anchor="mb")
    draw.text((LEFT, TOP / 2), "Loss", fill=INK, font=ImageFont.load_default(TITLE), anchor="lm")


def _draw_line(draw: ImageDraw.ImageDraw, frame: Frame, points: Points, colour: str, width: int) -> None:
    places = [(frame.x(step), frame.y(loss)) for step, loss in points]
    if len(places) > 1:
        draw.line(list(_thin_out(places)), fill=colour, width=width, joint="curve")
    for place in places if len(places) == 1 else []:
        draw.circle(place, 2 * width, fill=colour)


def _thin_out(places: Points) -> Iterator[tuple[float, float]]:
    """Keep the highest and the lowest of each column of pixels, which look the same as all of them."""
    for _, column in groupby(places, key=lambda place: int(place[0])):
        heights = list(column)
        yield min(heights, key=lambda place: place[1])
        if len(heights) > 1:
            yield max(heights, key=lambda place: place[1])


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    font, right = ImageFont.load_default(FONT), float(WIDTH - RIGHT)
    for text, colour, width in (("running mean", STRONG, THICK), ("each step", FAINT, THIN)):
        draw.text((right, TOP / 2), text, fill=GREY, font=font, anchor="rm")
        right -= font.getlength(text) + GAP
        draw.line((right - 3 * GAP, TOP / 2, right, TOP / 2), fill=colour, width=width)
        right -= 6 * GAP


def _unit(span: float) -> float:
    """The distance between ticks: the smallest of 1, 2 and 5 times a power of ten that gives few enough of them."""
    power: float = 10.0 ** math.floor(math.log10(span / TICKS))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / TICKS)


def _ticks(low: float, high: float, unit: float) -> list[float]:
    return [i * unit for i in range(math.ceil(low / unit), math.floor(high / unit) + 1)]


def _label(loss: float, unit: float) -> str:
    """Format a loss with as many digits as distinguish it from its neighbours."""
    digits = max(0, -math.floor(math.log10(unit)))
    return f"{loss:.{digits}f}" if max(digits, math.log10(abs(loss) or 1)) < LONGEST_LABEL else f"{loss:.2e}"
