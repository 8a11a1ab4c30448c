"""A demo data set: a little robot in many colours, drawn on the spot and captioned.

``python -m training_worker.engines.demo_dataset FOLDER`` writes it. The same images every time.
"""

import argparse
import itertools
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 256
BODIES = ("red", "orange", "gold", "seagreen", "royalblue")
BACKGROUNDS = ("lightblue", "beige")


def write_dataset(folder: Path) -> None:
    """Write one image and one caption for each pair of a body's and a background's colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (background, body) in enumerate(itertools.product(BACKGROUNDS, BODIES)):
        name = f"robot-{i:02}"
        draw_robot(body, background, offset=12 * (i % 5) - 24).save(folder / f"{name}.png")
        caption = f"a small {body} robot on a {background} background"
        (folder / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")


def draw_robot(body: str, background: str, offset: int) -> Image.Image:
    """Draw a robot of 256 x 256 pixels, moved ``offset`` pixels to the right of the middle."""
    image = Image.new("RGB", (SIZE, SIZE), background)
    draw = ImageDraw.Draw(image)
    middle = SIZE // 2 + offset
    _draw_limbs(draw, middle)
    draw.rectangle((middle - 48, 112, middle + 48, 200), fill=body, outline="black", width=4)
    draw.rectangle((middle - 36, 48, middle + 36, 104), fill=body, outline="black", width=4)
    _draw_face(draw, middle)
    return image


def _draw_limbs(draw: ImageDraw.ImageDraw, middle: int) -> None:
    for side in (-1, 1):
        draw.line((middle + side * 48, 128, middle + side * 76, 168), fill="dimgray", width=12)
        draw.line((middle + side * 24, 200, middle + side * 24, 236), fill="dimgray", width=14)
    draw.line((middle, 48, middle, 24), fill="dimgray", width=6)
    draw.ellipse((middle - 8, 12, middle + 8, 28), fill="crimson")


def _draw_face(draw: ImageDraw.ImageDraw, middle: int) -> None:
    for side in (-1, 1):
        eye = middle + side * 16
        draw.ellipse((eye - 8, 62, eye + 8, 78), fill="white", outline="black", width=2)
        draw.ellipse((eye - 3, 67, eye + 3, 73), fill="black")
    draw.line((middle - 16, 92, middle + 16, 92), fill="black", width=4)


def main() -> None:
    """Write the data set to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Draw a small captioned data set.")
    parser.add_argument("folder", type=Path)
    write_dataset(parser.parse_args().folder)


if __name__ == "__main__":
    main()
