"""The formats of data sets, and which of them a data set has."""

from collections.abc import Callable
from pathlib import Path

from training_worker.engines.common.data.entries import Entry
from training_worker.engines.common.protocol.failures import Fault
from training_worker.engines.diffusers.data.jsonl import read_lines
from training_worker.engines.diffusers.data.tables import STATE_FILE, read_parquet, read_saved

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
LINES_FILES = ("data.jsonl", "metadata.jsonl")
LINES_SUFFIX = ".jsonl"


def list_entries(path: Path, extract_to: Path, check_stop: Callable[[], None]) -> list[Entry | Fault]:
    """List the images of a data set with what is said of them, always in the same order. The first that fits counts.

    1. a single ``.jsonl`` file;
    2. a folder with ``data.jsonl``, or else with ``metadata.jsonl``; text files beside the images are passed over;
    3. a folder that `datasets.Dataset.save_to_disk` wrote, by its ``state.json``;
    4. a folder with ``*.parquet`` files, or else with a folder ``data`` that has some;
    5. a folder of images, each with its caption in a text file of the same name.

    Images that stand inside tables (3 and 4) are written to the folder ``extract_to``.
    """
    if not path.is_dir():
        if path.suffix == LINES_SUFFIX and path.is_file():
            return read_lines(path)
        return [Fault(path=str(path), reason=f"neither a folder nor a {LINES_SUFFIX} file")]
    for name in LINES_FILES:
        if (path / name).is_file():
            return read_lines(path / name)
    if (path / STATE_FILE).is_file():
        return read_saved(path, extract_to, check_stop)
    for folder in (path, path / "data"):
        if tables := sorted(folder.glob("[!.]*.parquet")):
            return read_parquet(tables, path, extract_to, check_stop)
    return _list_folder(path)


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
