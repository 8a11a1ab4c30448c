"""The data set: everything is read and checked before hours are spent on it."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from training_schemas.progress import FailureReason
from training_schemas.spec import TrainingParameters
from training_worker.engines.common.data.checks import Rules, check_entries, invalid_dataset
from training_worker.engines.common.data.entries import Entry
from training_worker.engines.common.data.examples import Example
from training_worker.engines.common.protocol.failures import Fault, TrainingFailure
from training_worker.engines.diffusers.cache.keys import content_key
from training_worker.engines.diffusers.data.buckets import bucket_of
from training_worker.engines.diffusers.data.formats import list_entries
from training_worker.engines.diffusers.data.images import check_image, check_mask
from training_worker.engines.diffusers.data.report import DatasetReport, report_on


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The examples in their order, and the report on them."""

    examples: list[Example]
    report: DatasetReport

    @property
    def order(self) -> str:
        """A hash of what is trained on, in its order: checkpoints point into it."""
        return content_key("order", examples=[(one.digest, one.caption, one.repeats) for one in self.examples])


def read_dataset(  # noqa: PLR0913, PLR0917 # what, how, and three hooks into the rest of the run
    path: Path,
    settings: TrainingParameters,
    divisor: int,
    extract_to: Path,
    check_stop: Callable[[], None],
    on_total: Callable[[int], None],
) -> Dataset:
    """Find the images of a data set, decode each of them, and read all captions and masks.

    The formats are those of `list_entries`, which writes images out of tables to ``extract_to``. ``divisor`` is that
    of `bucket_of`. ``on_total`` gets the number of images before they are decoded.

    Raises:
        TrainingFailure: There is no data set, or something in it cannot be trained on; it names all of that.
    """
    try:
        if not path.exists():
            raise TrainingFailure(FailureReason.DATASET_MISSING, f"cannot read data set {path}: no such file or folder")
        listed = list_entries(path, extract_to, check_stop)
    except PermissionError as error:
        raise invalid_dataset(path, [Fault(path=str(error.filename), reason=str(error.strerror))]) from error
    on_total(sum(isinstance(entry, Entry) for entry in listed))
    examples = check_entries(path, listed, _rules(settings, divisor), check_stop)
    return Dataset(examples=examples, report=report_on(examples))


def _rules(settings: TrainingParameters, divisor: int) -> Rules:
    return Rules(
        image_size=check_image,
        mask_size=check_mask,
        bucket_of=lambda size: bucket_of(*size, settings.resolution, divisor, settings.aspect_ratio_buckets),
        masked=settings.masked_loss,
        trigger_word=settings.trigger_word,
        caption_prefix=settings.caption_prefix,
    )
