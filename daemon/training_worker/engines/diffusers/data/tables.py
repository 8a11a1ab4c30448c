"""A local Hugging Face data set: tables of images and captions, in Arrow or in Parquet files.

The images inside them are written out to files, so that everything after has only files to know of.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from training_worker.engines.common.data.entries import Entry, path_inside
from training_worker.engines.common.data.images import BrokenImageError
from training_worker.engines.common.protocol.failures import Fault
from training_worker.engines.diffusers.data.images import format_of

STATE_FILE = "state.json"
IMAGE_COLUMN = "image"
CAPTION_COLUMNS = ("text", "caption")
ROWS_AT_ONCE = 32


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row as it was read: ``image`` is a path, or a dict of encoded ``bytes`` and a ``path``."""

    at: str
    image: Any
    caption: Any


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """One of the Arrow files that a saved data set lists."""

    filename: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of the ``state.json`` that `datasets.Dataset.save_to_disk` writes."""

    files: list[DataFile] = msgspec.field(name="_data_files")


def read_saved(folder: Path, extract_to: Path, check_stop: Callable[[], None]) -> list[Entry | Fault]:
    """Read what `datasets.Dataset.save_to_disk` wrote, in the order in which it lists its files."""
    state_path = folder / STATE_FILE
    try:
        state = msgspec.json.decode(state_path.read_bytes(), type=State)
        files = [path_inside(folder, file.filename) for file in state.files]
    except (OSError, ValueError, msgspec.DecodeError) as error:
        return [Fault(path=str(state_path), reason=str(error))]
    return _read_files(files, _arrow_batches, folder, extract_to, check_stop)


def read_parquet(
    files: Sequence[Path], folder: Path, extract_to: Path, check_stop: Callable[[], None]
) -> list[Entry | Fault]:
    """Read Parquet files, one after another; ``folder`` is what paths in them are relative to."""
    return _read_files(files, _parquet_batches, folder, extract_to, check_stop)


def _read_files(
    files: Sequence[Path],
    batches: Callable[[Path], Iterator[Any]],
    folder: Path,
    extract_to: Path,
    check_stop: Callable[[], None],
) -> list[Entry | Fault]:
    """Make entries of all rows; the images that are in them are named by their number, counted through all files."""
    extract_to.mkdir(parents=True, exist_ok=True)
    entries: list[Entry | Fault] = []
    for file in files:
        for row in _rows(file, batches):
            check_stop()
            entries.append(row if isinstance(row, Fault) else _entry(row, folder, extract_to / f"{len(entries):08}"))
    return entries


def _rows(file: Path, batches: Callable[[Path], Iterator[Any]]) -> Iterator[Row | Fault]:
    """Read a file's rows; what is wrong with the file itself is a fault, and the end of it."""
    import pyarrow as pa  # noqa: PLC0415 # seldom needed

    if not file.is_file():  # opening a pipe would wait for somebody to write
        yield Fault(path=str(file), reason="unreadable table: no such file")
        return
    number = 0
    try:
        for batch in batches(file):
            names = batch.schema.names
            captions = [name for name in CAPTION_COLUMNS if name in names]
            if IMAGE_COLUMN not in names or not captions:
                wanted = f"{IMAGE_COLUMN} and one of {', '.join(CAPTION_COLUMNS)}"
                yield Fault(path=str(file), reason=f"needs the columns {wanted}, has {', '.join(names)}")
                return
            for image, caption in zip(batch.column(IMAGE_COLUMN), batch.column(captions[0]), strict=True):
                number += 1
                yield Row(at=f"{file}: row {number}", image=image.as_py(), caption=caption.as_py())
    except (OSError, pa.ArrowException) as error:
        yield Fault(path=str(file), reason=f"unreadable table: {error}")


def _arrow_batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa  # noqa: PLC0415 # seldom needed

    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def _parquet_batches(file: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415 # seldom needed

    with ParquetFile(file) as reader:
        yield from reader.iter_batches(batch_size=ROWS_AT_ONCE)


def _entry(row: Row, folder: Path, target: Path) -> Entry | Fault:
    try:
        image = _image(row.image, folder, target)
    except (BrokenImageError, ValueError) as error:
        return Fault(path=row.at, reason=f"unreadable image: {error}")
    if not isinstance(row.caption, str):
        caption: str | Fault = Fault(path=row.at, reason="missing caption")
    else:
        caption = row.caption.strip()
    return Entry(image=image, caption=caption, caption_at=row.at)


def _image(cell: Any, folder: Path, target: Path) -> Path:
    """Write an encoded image to a file, or find the file that is named instead.

    Raises:
        BrokenImageError: It is no image.
        ValueError: There is neither an image nor a path, or it leads out of the data set.
    """
    data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, cell)
    if isinstance(data, bytes):
        path = target.with_suffix(f".{format_of(data)}")
        path.write_bytes(data)
        return path
    if not isinstance(name, str):
        raise ValueError("neither bytes nor a path")  # noqa: TRY004 # the data's mistake, not the caller's
    return path_inside(folder, name)
