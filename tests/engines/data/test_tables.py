"""Local Hugging Face data sets."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.engines.datasets import faults_of, never, read, settings, write_image, write_mask

from training_worker.engines.common.protocol.failures import TrainingStopped
from training_worker.engines.diffusers.data.dataset import read_dataset

pytestmark = pytest.mark.trainer

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ARROW_FILES = ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow")

WriteTables = Callable[..., Path]


def image_table(images: list[Any], captions: list[Any], column: str = "text") -> pa.Table:
    """Make a table as `datasets` does for its `Image` feature."""
    return pa.table({"id": list(range(len(images))), "image": pa.array(images, IMAGE), column: captions})


def encoded(path: Path, *, named: bool = False) -> dict[str, Any]:
    """Take an image into a table, bytes and all."""
    return {"bytes": path.read_bytes(), "path": path.name if named else None}


def write_saved(folder: Path, *tables: pa.Table) -> None:
    """Write what `datasets.Dataset.save_to_disk` does: Arrow streams, and a list of them."""
    folder.mkdir(exist_ok=True)
    names = ARROW_FILES[: len(tables)]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")


def write_parquet(folder: Path, *tables: pa.Table) -> None:
    """Write Parquet files named as the hub does."""
    folder.mkdir(exist_ok=True)
    for i, table in enumerate(tables):
        parquet.write_table(table, folder / f"train-{i:05}-of-{len(tables):05}.parquet")


def write_parquet_below(folder: Path, *tables: pa.Table) -> None:
    """Write Parquet files where the hub has them."""
    folder.mkdir(exist_ok=True)
    write_parquet(folder / "data", *tables)


any_format = pytest.mark.parametrize("write", [write_saved, write_parquet, write_parquet_below])


@any_format
@pytest.mark.parametrize("column", ["text", "caption"])
def test_images_in_tables_are_written_out(tmp_path: Path, write: WriteTables, column: str) -> None:
    """Numbered through all tables, by the formats that they have."""
    images = [
        write_image(tmp_path / "a.png"),
        write_image(tmp_path / "b.jpg", colour="red"),
        write_image(tmp_path / "c.webp", colour="blue"),
    ]
    write(
        tmp_path / "dataset",
        image_table([encoded(images[0], named=True), encoded(images[1])], ["a ", "b"], column),
        image_table([encoded(images[2])], ["c"], column),
    )

    examples = read(tmp_path / "dataset").examples

    names = ["00000000.png", "00000001.jpeg", "00000002.webp"]
    assert [(tmp_path / "extracted" / name, caption) for name, caption in zip(names, "abc", strict=True)] == [
        (example.image, example.caption) for example in examples
    ]
    assert [image.read_bytes() for image in images] == [example.image.read_bytes() for example in examples]


@any_format
def test_images_can_be_named_by_their_paths(tmp_path: Path, write: WriteTables) -> None:
    """Relative to the data set, in a struct without bytes or as mere text."""
    folder = tmp_path / "dataset"
    image = write_image(folder / "images" / "a.png")
    write(folder, image_table([{"bytes": None, "path": "images/a.png"}], ["a"]))
    assert [image] == [example.image for example in read(folder).examples]

    write(folder, pa.table({"image": ["images/a.png"], "text": ["a"]}))
    assert [image] == [example.image for example in read(folder).examples]


def test_hidden_tables_are_passed_over(tmp_path: Path) -> None:
    """Such as those that macOS leaves on network drives."""
    write_parquet(tmp_path / "dataset", image_table([encoded(write_image(tmp_path / "a.png"))], ["a"]))
    (tmp_path / "dataset" / "._train.parquet").write_bytes(b"")

    assert 1 == len(read(tmp_path / "dataset").examples)


@any_format
def test_all_faults_of_rows_are_reported_at_once(tmp_path: Path, write: WriteTables) -> None:
    """By table and row, counted from 1."""
    good = encoded(write_image(tmp_path / "a.png"))
    cells = [
        ({"bytes": b"no image", "path": None}, "a", "unreadable image: cannot identify"),
        (good, "a", None),
        ({"bytes": None, "path": None}, "a", "unreadable image: neither bytes nor a path"),
        (None, "a", "unreadable image: neither bytes nor a path"),
        ({"bytes": None, "path": "/etc/hostname"}, "a", "unreadable image: '/etc/hostname' is not a path below"),
        (good, None, "missing caption"),
        (good, "", "empty caption"),
    ]
    write(tmp_path / "dataset", image_table([cell[0] for cell in cells], [cell[1] for cell in cells]))
    (table,) = (file for file in (tmp_path / "dataset").rglob("*") if file.suffix in {".arrow", ".parquet"})

    faults = faults_of(tmp_path / "dataset")

    expected = [(f"{table}: row {i}", reason) for i, (_, _, reason) in enumerate(cells, start=1) if reason]
    assert [where for where, _ in expected] == [fault.path for fault in faults]
    assert all(fault.reason.startswith(reason) for fault, (_, reason) in zip(faults, expected, strict=True))


@any_format
@pytest.mark.parametrize("columns", [["image"], ["text"], ["picture", "text"]])
def test_tables_that_lack_a_column_are_reported_with_what_they_have(
    tmp_path: Path, write: WriteTables, columns: list[str]
) -> None:
    """Perhaps it only has to be renamed."""
    write(tmp_path / "dataset", pa.table({name: ["a.png"] for name in columns}))

    (fault,) = faults_of(tmp_path / "dataset")

    assert f"needs the columns image and one of text, caption, has {', '.join(columns)}" == fault.reason


@any_format
@pytest.mark.parametrize("data", [b"", b"no table" * 20])
def test_broken_tables_are_reported(tmp_path: Path, write: WriteTables, data: bytes) -> None:
    """And do not hide what is wrong with others."""
    good = encoded(write_image(tmp_path / "a.png"))
    write(tmp_path / "dataset", image_table([good], ["a"]), image_table([good], [""]))
    tables = sorted(file for file in (tmp_path / "dataset").rglob("*") if file.suffix in {".arrow", ".parquet"})
    tables[0].write_bytes(data)

    faults = faults_of(tmp_path / "dataset")

    assert [str(tables[0]), f"{tables[1]}: row 1"] == [fault.path for fault in faults]
    assert faults[0].reason.startswith("unreadable table: ")


@any_format
def test_a_pipe_is_no_table(tmp_path: Path, write: WriteTables) -> None:
    """Reading it would wait forever."""
    write(tmp_path / "dataset", image_table([], []))
    (table,) = (file for file in (tmp_path / "dataset").rglob("*") if file.suffix in {".arrow", ".parquet"})
    table.unlink()
    os.mkfifo(table)

    assert [(str(table), "unreadable table: no such file")] == [
        (fault.path, fault.reason) for fault in faults_of(tmp_path / "dataset")
    ]


@pytest.mark.parametrize(
    "state",
    [b"", b"{}", b'{"_data_files": [{}]}', b'{"_data_files": [{"filename": "../outside.arrow"}]}'],
)
def test_a_bad_list_of_tables_is_reported(tmp_path: Path, state: bytes) -> None:
    """Among that, tables that are elsewhere."""
    write_saved(tmp_path / "outside", image_table([encoded(write_image(tmp_path / "a.png"))], ["a"]))
    (tmp_path / "outside" / ARROW_FILES[0]).rename(tmp_path / "outside.arrow")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "state.json").write_bytes(state)

    assert [str(tmp_path / "dataset" / "state.json")] == [fault.path for fault in faults_of(tmp_path / "dataset")]


def test_masks_of_tables_are_named_by_number(tmp_path: Path) -> None:
    """As the images are once they are written out."""
    write_saved(tmp_path / "dataset", image_table([encoded(write_image(tmp_path / "a.jpg"))], ["a"]))
    mask = write_mask(tmp_path / "dataset" / "masks" / "00000000.png")

    assert [mask] == [example.mask for example in read(tmp_path / "dataset", masked_loss=True).examples]


@any_format
def test_unpacking_stops_between_rows(tmp_path: Path, write: WriteTables) -> None:
    """It takes minutes, and space."""
    write(tmp_path / "dataset", image_table([encoded(write_image(tmp_path / "a.png"))] * 3, ["a"] * 3))
    extracted = tmp_path / "extracted"

    def stop() -> None:
        if list(extracted.iterdir()):
            raise TrainingStopped("signal")

    with pytest.raises(TrainingStopped):
        read_dataset(tmp_path / "dataset", settings(), 16, extracted, stop, lambda _: None)

    assert 1 == len(list(extracted.iterdir()))


def test_a_full_disk_is_no_fault_of_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job can be tried elsewhere."""
    write_parquet(tmp_path / "dataset", image_table([encoded(write_image(tmp_path / "a.png"))], ["a"]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(OSError, match="No space left"):
        read_dataset(tmp_path / "dataset", settings(), 16, tmp_path / "extracted", never, lambda _: None)
