"""All samples of a run in one image."""

from pathlib import Path

import pytest
from PIL import Image

from training_worker.engines.diffusers.export.contact_sheet import COLUMNS, EMPTY, GAP, LINE, contact_sheet

pytestmark = pytest.mark.trainer

Colour = tuple[int, int, int]


def draw_samples(
    folder: Path, steps: range, prompts: int, size: tuple[int, int] = (64, 64)
) -> list[tuple[int, int, Path]]:
    """Draw images of one colour each: red is the step, green the prompt."""
    samples = []
    for step in steps:
        for prompt in range(prompts):
            path = folder / f"{step}-{prompt}.png"
            Image.new("RGB", size, (step, 100 + prompt, 0)).save(path)
            samples.append((step, prompt, path))
    return samples


def cells(path: Path, columns: int, rows: int, size: tuple[int, int]) -> list[list[Colour]]:
    """Read the colour in the middle of each place, row by row, by places of so many pixels."""
    width, height = size
    with Image.open(path) as sheet:
        pixels = sheet.convert("RGB")
    found: list[list[Colour]] = [[] for _ in range(rows)]
    for row in range(rows):
        for column in range(columns):
            x = GAP + column * (width + GAP) + width // 2
            y = GAP + LINE + row * (LINE + height + GAP) + LINE + height // 2
            colour = pixels.getpixel((x, y))
            assert isinstance(colour, tuple)
            found[row].append((colour[0], colour[1], colour[2]))
    return found


def test_prompts_are_rows_and_steps_are_columns(tmp_path: Path) -> None:
    """In the order of the steps, whatever that of the files."""
    samples = draw_samples(tmp_path, range(0, 40, 10), prompts=2)

    contact_sheet(samples[::-1], ["a robot", "a boat"], tmp_path / "sheet.png")

    expected = [[(step, 100 + prompt, 0) for step in (0, 10, 20, 30)] for prompt in (0, 1)]
    assert expected == cells(tmp_path / "sheet.png", 4, 2, (112, 64))


def test_of_many_steps_some_are_shown(tmp_path: Path) -> None:
    """Twelve: the first, the last, and those evenly between."""
    contact_sheet(draw_samples(tmp_path, range(0, 221, 5), 1), ["a robot"], tmp_path / "sheet.png")

    (row,) = cells(tmp_path / "sheet.png", COLUMNS, 1, (112, 64))
    assert [0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 220] == [red for red, _, _ in row]


def test_the_place_of_a_missing_sample_is_empty(tmp_path: Path) -> None:
    """A prompt may have been asked for later."""
    samples = draw_samples(tmp_path, range(0, 20, 10), prompts=2)
    del samples[1]

    contact_sheet(samples, ["a robot", "a boat"], tmp_path / "sheet.png")

    empty = (int(EMPTY[1:3], 16), int(EMPTY[3:5], 16), int(EMPTY[5:7], 16))
    assert [empty, (10, 101, 0)] == cells(tmp_path / "sheet.png", 2, 2, (112, 64))[1]


@pytest.mark.parametrize(
    ("size", "thumbnail"), [((1024, 1024), (256, 256)), ((512, 1024), (128, 256)), ((1024, 768), (256, 192))]
)
def test_large_samples_are_made_smaller(tmp_path: Path, size: tuple[int, int], thumbnail: tuple[int, int]) -> None:
    """To 256 pixels on the longer side, and whole."""
    contact_sheet(draw_samples(tmp_path, range(0, 50, 10), 1, size), ["a robot"], tmp_path / "sheet.png")

    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = thumbnail
        assert (GAP + 5 * (width + GAP), GAP + LINE + LINE + height + GAP) == sheet.size
    assert [[(step, 100, 0) for step in range(0, 50, 10)]] == cells(tmp_path / "sheet.png", 5, 1, thumbnail)


def test_a_long_prompt_is_cut_off(tmp_path: Path) -> None:
    """With room to the edge, and in one line."""
    contact_sheet(draw_samples(tmp_path, range(1), 1), ["a robot\nwith wheels " * 60], tmp_path / "sheet.png")

    with Image.open(tmp_path / "sheet.png") as sheet:
        label = sheet.crop((0, GAP + LINE, sheet.width, GAP + LINE + LINE))
        edge = label.crop((label.width - GAP, 0, *label.size))
    assert label.getcolors(1) is None
    assert [(LINE * GAP, (255, 255, 255))] == edge.getcolors()
