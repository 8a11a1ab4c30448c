"""Images and masks: how their files are read, and what of them is trained on."""

from io import BytesIO
from pathlib import Path

import msgspec
from PIL import Image, ImageOps

from training_worker.engines.common.data.examples import Example
from training_worker.engines.common.data.images import Size, cover_scale, reading, size_of_mask, verified

# A crop that leaves as much on either side.
MIDDLE = 0.5


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an image that is trained on.

    The image has ``original`` pixels when upright. It is scaled to ``scaled``, then mirrored if ``flipped``, and then
    ``bucket`` is cut out of it, ``left`` and ``top`` pixels from its corner: SDXL is given the original size, these
    offsets and the bucket.
    """

    original: Size
    scaled: Size
    left: int
    top: int
    bucket: Size
    flipped: bool


def fit_view(  # noqa: PLR0913 # two sizes and where one lies in the other
    width: int, height: int, bucket: Size, left: float = MIDDLE, top: float = MIDDLE, *, flipped: bool = False
) -> View:
    """Scale an image to the least size that covers the bucket.

    ``left`` and ``top`` are the shares of the excess that are cut off on that side: 0 for none of it, 0.5 for half.
    """
    scale = cover_scale(width, height, bucket)
    scaled = round(width * scale), round(height * scale)
    return View(
        original=(width, height),
        scaled=scaled,
        left=round((scaled[0] - bucket[0]) * left),
        top=round((scaled[1] - bucket[1]) * top),
        bucket=bucket,
        flipped=flipped,
    )


def view_of(example: Example, *, left: float = MIDDLE, top: float = MIDDLE, flipped: bool = False) -> View:
    """How an example is scaled, cropped at a share of what is over, and mirrored; its size is that when upright."""
    return fit_view(example.width, example.height, example.bucket, left=left, top=top, flipped=flipped)


def load_view(path: Path, view: View) -> Image.Image:
    """Decode what is seen of an image, upright and opaque, in RGB. Transparent parts become white."""
    return _cut(_decode(path, "RGB", "white"), view)


def load_mask(path: Path, view: View) -> Image.Image:
    """Decode a mask as the view shows its image, in grey: white counts fully, black and transparent not at all."""
    return _cut(_decode(path, "L", "black"), view)


def check_image(path: Path) -> Size:
    """Read an image as training will, and return its size when upright.

    Raises:
        BrokenImageError: It is missing or broken, or so large that it may be a decompression bomb.
    """
    return verified(path, lambda path: _decode(path, "RGB", "white")).size


def check_mask(path: Path) -> Size:
    """Read a mask as training will, and return its size when upright.

    Raises:
        BrokenImageError: It is missing or broken, or nothing of its image would count.
    """
    return size_of_mask(verified(path, lambda path: _decode(path, "L", "black")))


def format_of(data: bytes) -> str:
    """Return the format of an encoded image, such as ``png``.

    Raises:
        BrokenImageError: It is none, or so large that it may be a decompression bomb.
    """
    with reading(), Image.open(BytesIO(data)) as image:
        return str(image.format).lower()


def _decode(path: Path, mode: str, background: str) -> Image.Image:
    """Decode an image, upright; of an animation its first frame."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):  # converting would cut off above 255
        image = image.convert("I").point(lambda value: value / 256)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert(mode)


def _cut(image: Image.Image, view: View) -> Image.Image:
    image = image.resize(view.scaled, Image.Resampling.LANCZOS)
    if view.flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = view.bucket
    return image.crop((view.left, view.top, view.left + width, view.top + height))
