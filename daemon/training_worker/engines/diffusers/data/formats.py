"""The formats of data sets that this trainer reads: those of both engines, and tables."""

from collections.abc import Callable
from pathlib import Path

from training_worker.engines.common.data import formats
from training_worker.engines.common.data.entries import Entry
from training_worker.engines.common.protocol.failures import Fault
from training_worker.engines.diffusers.data.jsonl import parse_line
from training_worker.engines.diffusers.data.tables import STATE_FILE, read_parquet, read_saved


def list_entries(path: Path, extract_to: Path, check_stop: Callable[[], None]) -> list[Entry | Fault]:
    """List the images of a data set as `formats.list_entries` does.

    Of tables the first that fits counts:

    1. a folder that `datasets.Dataset.save_to_disk` wrote, by its ``state.json``;
    2. a folder with ``*.parquet`` files, or else with a folder ``data`` that has some.

    Images that stand inside tables are written to the folder ``extract_to``.
    """

    def read_tables(path: Path) -> list[Entry | Fault] | None:
        if (path / STATE_FILE).is_file():
            return read_saved(path, extract_to, check_stop)
        for folder in (path, path / "data"):
            if tables := sorted(folder.glob("[!.]*.parquet")):
                return read_parquet(tables, path, extract_to, check_stop)
        return None

    return formats.list_entries(path, parse_line, read_tables)
