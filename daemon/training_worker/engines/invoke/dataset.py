"""The data set: what upstream would not report is checked before it reads anything."""

import importlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..common.data.captions import full_caption
from ..common.data.checks import Rules, check_entries, invalid_dataset
from ..common.data.entries import Entry
from ..common.data.examples import Example
from ..common.data.formats import list_entries
from ..common.data.images import Size, size_of_mask, verified
from ..common.data.jsonl import Line
from ..common.data.report import summary_of, warnings_of
from ..common.protocol.failures import Fault, TrainingFailure
from .progress_writer import ProgressWriter
from .spec import INVERSION, Spec
from .stop_signals import Control

NOTES = {
    "turned": "are turned by their EXIF data, which invoke-training does not read: they are trained as they lie",
    "transparent": "may have transparent parts, whose hidden colours are trained",
}
TEXTS = ("image", "file_name", "text", "caption", "mask")


class Dataset:
    """The examples of a data set, all of them checked, and how many of its images each of `NOTES` is true of."""

    def __init__(self, examples: list[Example], notes: Mapping[str, int]) -> None:
        self.examples = examples
        self._notes = notes

    def summary(self) -> dict[str, Any]:
        """What it holds, in numbers. The digest is that of the built-in trainer."""
        return summary_of(self.examples)

    def warnings(self) -> list[str]:
        """Write warnings of what is no fault, but seldom meant."""
        count, summary = len(self.examples), self.summary()
        found = [f"{n} of {count} images {note}" for name, note in NOTES.items() if (n := self._notes.get(name, 0))]
        if summary["duplicates"]:
            found.append(f"{summary['duplicates']} of {count} images are in the data set more than once")
        return found + warnings_of(summary)

    def write(self, path: Path, spec: Spec) -> None:
        """Write it as upstream reads it: absolute paths, final captions, a line for each repeat."""
        # Upstream's template puts the new tokens before each caption itself.
        trigger = "" if spec.training_type == INVERSION else spec.parameters["triggerWord"]
        lines = []
        for example in self.examples:
            line = {
                "image": str(example.image.absolute()),
                "text": full_caption(example.caption, trigger, spec.parameters["captionPrefix"]),
                **({} if example.mask is None else {"mask": str(example.mask.absolute())}),
            }
            lines += [json.dumps(line) + "\n"] * example.repeats
        path.write_text("".join(lines), encoding="ascii")


def read_dataset(spec: Spec, bucket_of: Callable[[Size], Size], progress: ProgressWriter, control: Control) -> Dataset:
    """Find the images of a data set, decode each of them, and read all captions and masks.

    Raises:
        TrainingFailure: There is none, or something in it cannot be trained on; it names all of that.
    """
    importlib.import_module("PIL.Image")  # where it is missing, that is no image's fault
    path = spec.dataset
    if not path.exists():
        raise TrainingFailure("datasetMissing", f"cannot read data set {path}: no such file or folder")
    try:
        listed = list_entries(path, parse_line, _refuse_tables)
    except PermissionError as error:
        raise invalid_dataset(path, [Fault(str(error.filename), str(error.strerror))]) from error
    progress.phase("checkingDataset", total=sum(isinstance(entry, Entry) for entry in listed))
    notes: Counter[str] = Counter()
    examples = check_entries(path, listed, _rules(spec, bucket_of, notes), control.check)
    return Dataset(examples, notes)


def _refuse_tables(path: Path) -> list[Entry | Fault] | None:
    if (path / "state.json").is_file() or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
        reason = "a table; the engine invoke reads folders of images and .jsonl files, diffusers this"
        return [Fault(str(path), reason)]
    return None


def parse_line(data: bytes) -> Line:
    """Parse a line of a data set. The built-in trainer's parser reports more of what is wrong; it has msgspec.

    Raises:
        ValueError: It is none.
        RecursionError: It is too deep.
    """
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("not an object")  # noqa: TRY004 # a fault of the data, as bad JSON is
    for name in TEXTS:
        if not isinstance(fields.get(name), str | None):
            raise ValueError(f"{name} is not text")  # noqa: TRY004
    repeats = fields.get("repeats", 1)
    if type(repeats) is not int or repeats < 1:
        raise ValueError("repeats is not a number from 1")
    texts: dict[str, Any] = {name: fields.get(name) for name in TEXTS}
    return Line(**texts, repeats=repeats)


def _rules(spec: Spec, bucket_of: Callable[[Size], Size], notes: Counter[str]) -> Rules:
    """Read images as upstream will; what it passes over is counted in ``notes``."""

    def image_size(path: Path) -> Size:
        image, noted = verified(path, lambda path: _decode(path, "RGB"))
        notes.update(noted)
        return _size(image)

    return Rules(
        image_size=image_size,
        mask_size=lambda path: size_of_mask(verified(path, lambda path: _decode(path, "L"))[0]),
        bucket_of=bucket_of,
        masked=spec.parameters["maskedLoss"],
        trigger_word=spec.parameters["triggerWord"],
        caption_prefix=spec.parameters["captionPrefix"],
    )


def _size(image: Any) -> Size:
    width, height = image.size
    return width, height


def _decode(path: Path, mode: str) -> tuple[Any, list[str]]:
    """Decode an image as upstream will, not turned upright; gives what is to be noted of it, too."""
    from PIL import Image  # noqa: PLC0415 # a run without it must report that

    with Image.open(path) as file:
        seen = {"turned": file.getexif().get(0x0112, 1) != 1, "transparent": file.has_transparency_data}
        return file.convert(mode), [note for note, there in seen.items() if there]
