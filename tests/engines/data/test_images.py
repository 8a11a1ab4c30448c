"""What of images and masks is trained on."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.engines.datasets import write_image, write_mask

from training_worker.engines.common.data.images import BrokenImageError, Size
from training_worker.engines.diffusers.data.images import (
    check_image,
    check_mask,
    fit_view,
    format_of,
    load_mask,
    load_view,
)

pytestmark = pytest.mark.trainer

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
UPSIDE_DOWN, ON_ITS_SIDE = 3, 6

sides = st.integers(1, 5_000)
fractions = st.floats(0, 1)


def write_stripes(path: Path) -> Path:
    """Write an image of 30 x 10 pixels: a red, a blue and a white square."""
    image = Image.new("RGB", (30, 10), RED)
    image.paste(BLUE, (10, 0, 20, 10))
    image.paste(WHITE, (20, 0, 30, 10))
    image.save(path)
    return path


def write_turned(path: Path, orientation: int) -> Path:
    """Write an image of 20 x 10 pixels, red with a blue upper half, and a note of how the camera was held."""
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (0, 0, 20, 5))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def write_bomb(path: Path) -> None:
    """Write the head of a PNG of ten thousand million pixels, and no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0), b"IDAT"]
    data = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))


def whole(path: Path, size: Size) -> Image.Image:
    """Load an image of a size as it is."""
    return load_view(path, fit_view(*size, size))


@given(st.tuples(sides, sides), st.tuples(sides, sides), fractions, fractions)
def test_a_view_lies_in_its_image(size: Size, bucket: Size, left: float, top: float) -> None:
    """And one of its sides is as long as the image's: no more is cut off than must be."""
    view = fit_view(*size, bucket, left, top)

    assert 0 <= view.left <= view.scaled[0] - bucket[0]
    assert 0 <= view.top <= view.scaled[1] - bucket[1]
    assert bucket[0] == view.scaled[0] or bucket[1] == view.scaled[1]
    assert (size, bucket) == (view.original, view.bucket)


@pytest.mark.parametrize(
    ("left", "flipped", "colour", "offset"),
    [
        (0.5, False, BLUE, 40),
        (0.0, False, RED, 0),
        (1.0, False, WHITE, 80),
        (0.0, True, WHITE, 0),
        (1.0, True, RED, 80),
    ],
)
def test_a_view_is_cut_from_the_scaled_image(
    tmp_path: Path, left: float, flipped: bool, colour: tuple[int, int, int], offset: int
) -> None:
    """Mirrored before it is cut, so that offsets are those in the image that the model sees."""
    view = fit_view(30, 10, (40, 40), left, flipped=flipped)

    square = load_view(write_stripes(tmp_path / "wide.png"), view)

    assert (((120, 40), offset, 0), (40, 40)) == ((view.scaled, view.left, view.top), square.size)
    assert colour == square.getpixel((20, 20))


def test_a_tall_image_is_cut_above_and_below() -> None:
    """By the share that is asked for."""
    view = fit_view(10, 30, (40, 40), top=0.25)

    assert ((40, 120), 0, 20) == (view.scaled, view.left, view.top)


def test_scaling_down_mixes_what_is_too_fine_to_be_seen(tmp_path: Path) -> None:
    """Instead of picking some of it: a fine grid of black and white becomes grey."""
    grid = Image.new("L", (40, 40))
    grid.putdata([255 * ((x + y) % 2) for y in range(40) for x in range(40)])
    grid.save(tmp_path / "grid.png")

    grey = load_mask(tmp_path / "grid.png", fit_view(40, 40, (10, 10)))

    assert grey.getpixel((5, 5)) == pytest.approx(127, abs=5)


def test_a_mask_is_cut_as_its_image_is(tmp_path: Path) -> None:
    """The white square of the stripes is the last third of both."""
    write_stripes(tmp_path / "wide.png")
    mask = Image.new("L", (30, 10))
    mask.paste(255, (20, 0, 30, 10))
    mask.save(tmp_path / "mask.png")
    view = fit_view(30, 10, (40, 40), left=0.25, flipped=True)

    grey = load_mask(tmp_path / "mask.png", view)
    seen = load_view(tmp_path / "wide.png", view)

    assert [("RGB", WHITE, BLUE), ("L", 255, 0)] == [
        (image.mode, image.getpixel((2, 20)), image.getpixel((30, 20))) for image in (seen, grey)
    ]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path: Path, mode: str) -> None:
    """Whatever colour lies hidden in them."""
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 0)).convert(mode)
    image.save(tmp_path / "clear.png", transparency=0 if mode == "P" else None)

    assert WHITE == whole(tmp_path / "clear.png", (10, 10)).getpixel((5, 5))


def test_transparent_parts_of_masks_do_not_count(tmp_path: Path) -> None:
    """Painting programs leave what was rubbed out transparent, and white."""
    Image.new("RGBA", (10, 10), (255, 255, 255, 0)).save(tmp_path / "clear.png")

    assert 0 == load_mask(tmp_path / "clear.png", fit_view(10, 10, (10, 10))).getpixel((5, 5))


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    """A camera held on its side notes that in the file and leaves the pixels lying."""
    photo = write_turned(tmp_path / "photo.png", UPSIDE_DOWN)

    assert BLUE == whole(photo, (20, 10)).getpixel((5, 8))


@pytest.mark.parametrize(("orientation", "size"), [(UPSIDE_DOWN, (20, 10)), (ON_ITS_SIDE, (10, 20))])
def test_the_size_of_a_photograph_is_that_when_upright(tmp_path: Path, orientation: int, size: Size) -> None:
    """It decides on the bucket."""
    assert size == check_image(write_turned(tmp_path / "photo.jpg", orientation))


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    """Pillow would cut off everything above 255, which makes an image all white."""
    Image.new("I;16", (10, 10), 0x8000).save(tmp_path / "deep.png")

    assert (128, 128, 128) == whole(tmp_path / "deep.png", (10, 10)).getpixel((5, 5))


@pytest.mark.parametrize("suffix", ["webp", "png", "gif"])
def test_of_animations_the_first_frame_is_used(tmp_path: Path, suffix: str) -> None:
    """The others are passed over."""
    path = tmp_path / f"film.{suffix}"
    frames = [Image.new("RGB", (10, 10), colour) for colour in (BLUE, RED)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)

    assert (10, 10) == check_image(path)
    assert BLUE == whole(path, (10, 10)).getpixel((5, 5))


def write_half(path: Path) -> None:
    """Write an image whose end is missing."""
    write_image(path)
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_bomb, "decompression bomb"),
        (write_half, "."),
        (lambda path: path.write_text("no image", encoding="utf-8"), "cannot identify"),
        (lambda _: None, "no such file"),
        (lambda path: path.mkdir(), "no such file"),
        (os.mkfifo, "no such file"),
    ],
)
@pytest.mark.parametrize("check", [check_image, check_mask])
def test_broken_files_are_reported(
    tmp_path: Path, write: Callable[[Path], object], reason: str, check: Callable[[Path], Size]
) -> None:
    """And what nobody writes to is not waited for."""
    write(tmp_path / "broken.png")

    with pytest.raises(BrokenImageError, match=reason):
        check(tmp_path / "broken.png")


def test_images_of_which_pillow_only_warns_are_taken_for_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises an error only at twice as many pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    image = write_image(tmp_path / "a.png")

    with pytest.raises(BrokenImageError, match="decompression bomb"):
        check_image(image)
    with pytest.raises(BrokenImageError, match="decompression bomb"):
        format_of(image.read_bytes())


@pytest.mark.parametrize("grey", [1, 255])
def test_a_mask_that_leaves_something_is_good(tmp_path: Path, grey: int) -> None:
    """However little it counts."""
    assert (30, 20) == check_mask(write_mask(tmp_path / "mask.png", (30, 20), grey))


def test_a_mask_that_leaves_nothing_is_reported(tmp_path: Path) -> None:
    """There would be no loss to learn from."""
    with pytest.raises(BrokenImageError, match="all black"):
        check_mask(write_mask(tmp_path / "mask.png", grey=0))


@pytest.mark.parametrize(("suffix", "expected"), [("png", "png"), ("jpg", "jpeg"), ("webp", "webp")])
def test_formats_are_recognized_by_the_bytes(tmp_path: Path, suffix: str, expected: str) -> None:
    """Tables hold images that have no names."""
    assert expected == format_of(write_image(tmp_path / f"a.{suffix}").read_bytes())
