"""The checks of a data set: everything is read before hours are spent on it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..protocol.failures import DATASET_INVALID, Fault, TrainingFailure, failure_of_faults
from .captions import full_caption
from .digests import digest_of
from .entries import Entry
from .examples import Example
from .formats import IMAGE_SUFFIXES
from .images import BrokenImageError, Size, cover_scale

MASKS_FOLDER = "masks"
MOST_ENLARGED = 2


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a job wants of its data set, and how its engine reads it.

    ``image_size`` and ``mask_size`` decode a file and give its size, or raise `BrokenImageError`. ``bucket_of`` gives
    the size that an image of a size is trained at.
    """

    image_size: Callable[[Path], Size]
    mask_size: Callable[[Path], Size]
    bucket_of: Callable[[Size], Size]
    masked: bool
    trigger_word: str
    caption_prefix: str


def check_entries(
    path: Path, listed: list[Entry | Fault], rules: Rules, check_stop: Callable[[], None]
) -> list[Example]:
    """Make examples of what was listed in a data set.

    Raises:
        TrainingFailure: There is nothing, or something in it cannot be trained on; it names all of that.
    """
    examples: list[Example] = []
    faults: list[Fault] = []
    for entry in listed:
        check_stop()
        checked = [entry] if isinstance(entry, Fault) else _check(entry, rules, _folder_of(path))
        if isinstance(checked, Example):
            examples.append(checked)
        else:
            faults += checked
    if not listed:
        faults = [Fault(path=str(path), reason=f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}), nor a list of any")]
    if faults:
        raise invalid_dataset(path, faults)
    return examples


def invalid_dataset(path: Path, faults: list[Fault]) -> TrainingFailure:
    """Make the failure of a data set that cannot be trained on."""
    return failure_of_faults(DATASET_INVALID, f"cannot use data set {path}", faults)


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _check(entry: Entry, rules: Rules, folder: Path) -> Example | list[Fault]:
    """Make an example of an entry, or list all that is wrong with it."""
    sizes = _check_sizes(entry.image, rules)
    caption = _check_caption(entry, rules)
    mask = _check_mask(entry, sizes, rules, folder) if rules.masked else None
    if isinstance(sizes, Fault) or isinstance(caption, Fault) or isinstance(mask, Fault):
        return [part for part in (sizes, caption, mask) if isinstance(part, Fault)]
    (width, height), bucket = sizes
    return Example(
        image=entry.image,
        caption=caption,
        mask=mask,
        repeats=entry.repeats,
        width=width,
        height=height,
        bucket=bucket,
        digest=digest_of(entry.image),
        mask_digest=None if mask is None else digest_of(mask),
    )


def _check_sizes(image: Path, rules: Rules) -> tuple[Size, Size] | Fault:
    """Read an image; gives its own size and that which it is trained at."""
    try:
        width, height = rules.image_size(image)
    except BrokenImageError as error:
        return Fault(path=str(image), reason=f"unreadable image: {error}")
    bucket = rules.bucket_of((width, height))
    if cover_scale(width, height, bucket) > MOST_ENLARGED:
        covered = f"{bucket[0]}x{bucket[1]}"
        reason = f"too small: {width}x{height} pixels do not cover {covered} even when enlarged {MOST_ENLARGED} times"
        return Fault(path=str(image), reason=reason)
    return (width, height), bucket


def _check_caption(entry: Entry, rules: Rules) -> str | Fault:
    """A caption may be empty where the settings put something before it."""
    caption = entry.caption
    if isinstance(caption, str) and not full_caption(caption, rules.trigger_word, rules.caption_prefix):
        return Fault(path=entry.caption_at, reason="empty caption")
    return caption


def _check_mask(entry: Entry, sizes: tuple[Size, Size] | Fault, rules: Rules, folder: Path) -> Path | Fault:
    """Read an image's mask: its own, or else the one of its name in the data set's folder of masks."""
    mask = entry.mask or folder / MASKS_FOLDER / f"{entry.image.stem}.png"
    if isinstance(mask, Fault):
        return mask
    try:
        found = rules.mask_size(mask)
    except BrokenImageError as error:
        return Fault(path=str(mask), reason=f"unusable mask: {error}")
    if isinstance(sizes, Fault) or found == sizes[0]:
        return mask
    width, height = sizes[0]
    reason = f"unusable mask: {found[0]}x{found[1]} pixels, but its image has {width}x{height}"
    return Fault(path=str(mask), reason=reason)
