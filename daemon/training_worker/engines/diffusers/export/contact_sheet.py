"""All samples of a run in one image: how each prompt came to look, step by step."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 12
# Pixels.
THUMBNAIL = 256
NARROWEST_COLUMN = 112
NARROWEST_SHEET = 640
GAP = 10
LINE = 28
FONT = 16

PAPER = "#ffffff"
INK = "#24292f"
FAINT = "#57606a"
EMPTY = "#eff1f3"
DOTS = "…"


def contact_sheet(samples: Sequence[tuple[int, int, Path]], prompts: Sequence[str], path: Path) -> None:
    """Draw a PNG with a row for each prompt and a column for each step.

    ``samples`` are step, prompt's index and file, at least one. Of more than 12 steps it shows the first, the last and
    those evenly between; where a sample image is missing, its place stays empty.
    """
    steps = _spread(sorted({step for step, _, _ in samples}))
    thumbnails = {(step, prompt): _thumbnail(file) for step, prompt, file in samples if step in steps}
    width = max(NARROWEST_COLUMN, *(thumbnail.width for thumbnail in thumbnails.values()))
    height = max(thumbnail.height for thumbnail in thumbnails.values())
    row = LINE + height + GAP
    size = (max(NARROWEST_SHEET, GAP + len(steps) * (width + GAP)), GAP + LINE + len(prompts) * row)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for column, step in enumerate(steps):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, GAP + LINE / 2), f"step {step:,}", fill=INK, font=font, anchor="mm")
        for index in range(len(prompts)):
            top = GAP + LINE + index * row + LINE
            draw.rectangle((left, top, left + width - 1, top + height - 1), fill=EMPTY)
            if thumbnail := thumbnails.get((step, index)):
                sheet.paste(thumbnail, (left + (width - thumbnail.width) // 2, top + (height - thumbnail.height) // 2))
    for index, prompt in enumerate(prompts):
        middle = GAP + LINE + index * row + LINE / 2
        text = _fit(" ".join(prompt.split()), sheet.width - 2 * GAP, font)
        draw.text((GAP, middle), text, fill=FAINT, font=font, anchor="lm")
    sheet.save(path)


def _spread(steps: list[int]) -> list[int]:
    """Choose at most so many steps as there are columns."""
    if len(steps) <= COLUMNS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]


def _thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as image:
        thumbnail = image.convert("RGB")
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return thumbnail


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a text off where it becomes wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while font.getlength(text + DOTS) > width:
        text = text[:-1]
    return text + DOTS
