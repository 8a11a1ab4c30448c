"""The data set: everything is read and checked before hours are spent on it."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from training_schemas.progress import FailureReason
from training_schemas.spec import TrainingParameters
from training_worker.engines.common.data.entries import Entry
from training_worker.engines.common.protocol.failures import Fault, TrainingFailure
from training_worker.engines.diffusers.cache.keys import content_key
from training_worker.engines.diffusers.data.buckets import Size, bucket_of
from training_worker.engines.diffusers.data.captions import base_caption
from training_worker.engines.diffusers.data.examples import Example
from training_worker.engines.diffusers.data.formats import IMAGE_SUFFIXES, list_entries
from training_worker.engines.diffusers.data.images import (
    BrokenImageError,
    check_image,
    check_mask,
    cover_scale,
    digest_of,
)
from training_worker.engines.diffusers.data.report import DatasetReport, report_on

MASKS_FOLDER = "masks"
MOST_ENLARGED = 2


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The examples in their order, and what is to be told of them."""

    examples: list[Example]
    report: DatasetReport

    @property
    def order(self) -> str:
        """A hash of what is trained on, in its order: checkpoints point into it."""
        return content_key("order", examples=[(one.digest, one.caption, one.repeats) for one in self.examples])


def read_dataset(  # noqa: PLR0913, PLR0917 # what, how, and three ways of talking to the rest of the run
    path: Path,
    settings: TrainingParameters,
    divisor: int,
    extract_to: Path,
    check_stop: Callable[[], None],
    on_total: Callable[[int], None],
) -> Dataset:
    """Find the images of a data set, decode each of them, and read all captions and masks.

    The formats are those of `list_entries`, which writes images out of tables to ``extract_to``. ``divisor`` is that
    of `bucket_of`. ``on_total`` is told the number of images before they are decoded.

    Raises:
        TrainingFailure: There is no data set, or something in it cannot be trained on; it names all of that.
    """
    try:
        if not path.exists():
            raise TrainingFailure(FailureReason.DATASET_MISSING, f"cannot read data set {path}: no such file or folder")
        listed = list_entries(path, extract_to, check_stop)
    except PermissionError as error:
        raise _invalid(path, [Fault(path=str(error.filename), reason=str(error.strerror))]) from error
    on_total(sum(isinstance(entry, Entry) for entry in listed))
    examples: list[Example] = []
    faults: list[Fault] = []
    for entry in listed:
        check_stop()
        checked = [entry] if isinstance(entry, Fault) else _check(entry, settings, divisor, _folder_of(path))
        if isinstance(checked, Example):
            examples.append(checked)
        else:
            faults += checked
    if not listed:
        faults = [Fault(path=str(path), reason=f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}), nor a list of any")]
    if faults:
        raise _invalid(path, faults)
    return Dataset(examples=examples, report=report_on(examples))


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _check(entry: Entry, settings: TrainingParameters, divisor: int, folder: Path) -> Example | list[Fault]:
    """Make an example of an entry, or tell all that is wrong with it."""
    sizes = _check_sizes(entry.image, settings, divisor)
    caption = _check_caption(entry, settings)
    mask = _check_mask(entry, sizes, folder) if settings.masked_loss else None
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


def _check_sizes(image: Path, settings: TrainingParameters, divisor: int) -> tuple[Size, Size] | Fault:
    """Read an image; gives its own size and that which it is trained at."""
    try:
        width, height = check_image(image)
    except BrokenImageError as error:
        return Fault(path=str(image), reason=f"unreadable image: {error}")
    bucket = bucket_of(width, height, settings.resolution, divisor, settings.aspect_ratio_buckets)
    if cover_scale(width, height, bucket) > MOST_ENLARGED:
        covered = f"{bucket[0]}x{bucket[1]}"
        reason = f"too small: {width}x{height} pixels do not cover {covered} even when enlarged {MOST_ENLARGED} times"
        return Fault(path=str(image), reason=reason)
    return (width, height), bucket


def _check_caption(entry: Entry, settings: TrainingParameters) -> str | Fault:
    """A caption may be empty where the settings put something before it."""
    if isinstance(entry.caption, str) and not base_caption(entry.caption, settings):
        return Fault(path=entry.caption_at, reason="empty caption")
    return entry.caption


def _check_mask(entry: Entry, sizes: tuple[Size, Size] | Fault, folder: Path) -> Path | Fault:
    """Read an image's mask: its own, or else the one of its name in the data set's folder of masks."""
    mask = entry.mask or folder / MASKS_FOLDER / f"{entry.image.stem}.png"
    if isinstance(mask, Fault):
        return mask
    try:
        found = check_mask(mask)
    except BrokenImageError as error:
        return Fault(path=str(mask), reason=f"unusable mask: {error}")
    if isinstance(sizes, Fault) or found == sizes[0]:
        return mask
    width, height = sizes[0]
    reason = f"unusable mask: {found[0]}x{found[1]} pixels, but its image has {width}x{height}"
    return Fault(path=str(mask), reason=reason)


def _invalid(path: Path, faults: list[Fault]) -> TrainingFailure:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = f"cannot use data set {path}: {first.path}: {first.reason}{more}"
    return TrainingFailure(FailureReason.DATASET_INVALID, message, faults)
