"""The formats of data sets, and which of them a data set has."""

from collections.abc import Callable
from pathlib import Path

from ..protocol.failures import Fault
from .entries import Entry
from .jsonl import ParseLine, read_lines

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
LINES_FILES = ("data.jsonl", "metadata.jsonl")
LINES_SUFFIX = ".jsonl"


def list_entries(
    path: Path, parse: ParseLine, read_tables: Callable[[Path], list[Entry | Fault] | None]
) -> list[Entry | Fault]:
    """List the images of a data set with their captions, always in the same order. The first that fits counts.

    1. a single ``.jsonl`` file;
    2. a folder with ``data.jsonl``, or else with ``metadata.jsonl``; text files beside the images are passed over;
    3. a folder of tables: ``read_tables`` lists what they hold, or gives None where there are none;
    4. a folder of images, each with its caption in a text file of the same name.
    """
    if not path.is_dir():
        if path.suffix == LINES_SUFFIX and path.is_file():
            return read_lines(path, parse)
        return [Fault(path=str(path), reason=f"neither a folder nor a {LINES_SUFFIX} file")]
    for name in LINES_FILES:
        if (path / name).is_file():
            return read_lines(path / name, parse)
    tables = read_tables(path)
    return _list_folder(path) if tables is None else tables


def _list_folder(folder: Path) -> list[Entry | Fault]:
    """List the images in the order of their names, passing over hidden ones and all that lie deeper, such as masks."""
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    return [Entry(image=image, caption=_read_caption(image), caption_at=str(_caption_path(image))) for image in images]


def _caption_path(image: Path) -> Path:
    return image.with_suffix(".txt")


def _read_caption(image: Path) -> str | Fault:
    path = _caption_path(image)
    try:
        if not path.is_file():  # reading a pipe would wait for somebody to write
            return Fault(path=str(path), reason="missing caption")
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        return Fault(path=str(path), reason=f"unreadable caption: {error}")
