"""What a model is trained on, one image at a time."""

from dataclasses import dataclass
from pathlib import Path

from .images import Size


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image that was found good, and its caption, as the data set has it (see `full_caption`).

    ``width`` and ``height`` are those of the image, ``bucket`` is the size that it is trained at. ``digest`` and
    ``mask_digest`` are the SHA-256 of the files, in hex. It is trained on ``repeats`` times where others are trained
    on once.
    """

    image: Path
    caption: str
    mask: Path | None
    repeats: int
    width: int
    height: int
    bucket: Size
    digest: str
    mask_digest: str | None
