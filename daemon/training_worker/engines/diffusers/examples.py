"""What a model is trained on, one image at a time."""

from pathlib import Path

import msgspec


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was found good, and what it shows in words, as the data set has it (see `base_caption`).

    ``width`` and ``height`` are those of the upright image; ``digest`` is the SHA-256 of its file, in hex. It is
    trained on ``repeats`` times where others are trained on once.
    """

    image: Path
    caption: str
    mask: Path | None
    repeats: int
    width: int
    height: int
    digest: str
