"""Images: their sizes, and how their files are looked at. A size is a width and a height in pixels."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

Size: TypeAlias = tuple[int, int]
Decoded = TypeVar("Decoded")


class BrokenImageError(Exception):
    """Something that cannot be used as an image or a mask; the message has the reason, not the path."""


def cover_scale(width: int, height: int, bucket: Size) -> Fraction:
    """Compute by how much an image must be scaled to cover a bucket: above 1, it is enlarged."""
    return max(Fraction(bucket[0], width), Fraction(bucket[1], height))


def verified(path: Path, decode: Callable[[Path], Decoded]) -> Decoded:
    """Decode an image whose checksums are right.

    Raises:
        BrokenImageError: It is missing or broken, or so large that it may be a decompression bomb.
    """
    from PIL import Image  # noqa: PLC0415 # a run without it must report that

    with reading():
        if not path.is_file():  # opening a pipe would wait for somebody to write
            raise FileNotFoundError("no such file")
        with Image.open(path) as file:
            file.verify()  # checksums, which decoding passes over
        return decode(path)


def size_of_mask(mask: Any) -> Size:
    """Return the size of a decoded mask in grey.

    Raises:
        BrokenImageError: Nothing of its image would count.
    """
    if mask.getbbox() is None:
        raise BrokenImageError("all black")
    width, height = mask.size
    return width, height


@contextmanager
def reading() -> Iterator[None]:
    """Turn Pillow's errors for a bad image into an error of our own; Pillow warns of bombs before it raises."""
    from PIL import Image  # noqa: PLC0415 # as above

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except Exception as error:  # Pillow's decoders raise what they like on broken files
        raise BrokenImageError(str(error)) from error
