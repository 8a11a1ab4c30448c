"""What the formats of data sets have in common: an entry is an image with its caption, not yet checked."""

from dataclasses import dataclass
from pathlib import Path

from ..protocol.failures import Fault


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of a data set.

    ``caption_at`` is where the caption stands, for people: a file, or a line of one. A fault takes the place of a
    caption or a mask that cannot be had; without a mask of its own, the one that is named after the image is meant.
    """

    image: Path
    caption: str | Fault
    caption_at: str
    mask: Path | Fault | None = None
    repeats: int = 1


def path_inside(folder: Path, name: str) -> Path:
    """Find a file that the data set names, which must lie in its folder: it may come from anybody.

    Raises:
        ValueError: It lies outside, at least by its name, or cannot be a path at all.
    """
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{name!r} is not a path below the data set")
    path = folder / relative
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # too long a name, or links that go round in a circle
        raise ValueError(f"{name!r} cannot be followed: {error}") from error
    if not inside:
        raise ValueError(f"{name!r} leads out of the data set")
    return path
