"""What a model is trained on, one image at a time."""

from pathlib import Path

import msgspec

from training_worker.engines.diffusers.data.buckets import Size
from training_worker.engines.diffusers.data.images import MIDDLE, View, fit_view


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was found good, and what it shows in words, as the data set has it (see `base_caption`).

    ``width`` and ``height`` are those of the upright image, ``bucket`` is the size that it is trained at. ``digest``
    and ``mask_digest`` are the SHA-256 of the files, in hex. It is trained on ``repeats`` times where others are
    trained on once.
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

    def view(self, *, left: float = MIDDLE, top: float = MIDDLE, flipped: bool = False) -> View:
        """How it is scaled, cropped at a share of what is over, and mirrored."""
        return fit_view(self.width, self.height, self.bucket, left=left, top=top, flipped=flipped)
