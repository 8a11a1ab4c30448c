"""Which format a data set is taken to have, and the plainest of them."""

import os
from pathlib import Path

import pytest
from tests.engines.datasets import faults_of, read, write_example, write_image, write_lines

pytestmark = pytest.mark.trainer


def captions(path: Path) -> list[str]:
    """Read a data set and list its captions."""
    return [example.caption for example in read(path).examples]


def test_images_of_all_kinds_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Hidden files, such as those that macOS leaves on network drives, other files and folders are passed over."""
    names = ["a.jpg", "b.JPEG", "c.png", "d.webp"]
    for name in reversed(names):
        write_example(tmp_path / name)
    (tmp_path / "._a.jpg").write_bytes(b"")
    (tmp_path / "notes.md").write_text("", encoding="utf-8")
    write_image(tmp_path / "masks" / "a.png")

    assert names == [example.image.name for example in read(tmp_path).examples]


def test_lists_come_before_text_files_and_data_before_metadata(tmp_path: Path) -> None:
    """A data set may hold its captions twice."""
    write_example(tmp_path / "a.png", "beside")
    assert ["beside"] == captions(tmp_path)

    write_lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "metadata"})
    assert ["metadata"] == captions(tmp_path)

    write_lines(tmp_path / "data.jsonl", {"image": "a.png", "text": "data"})
    assert ["data"] == captions(tmp_path)


def test_a_data_set_can_be_a_list_alone(tmp_path: Path) -> None:
    """Whatever its name, and whatever else is in its folder."""
    write_example(tmp_path / "images" / "a.png", "beside")
    write_lines(tmp_path / "data.jsonl", {"image": "images/a.png", "text": "data"})
    some = write_lines(tmp_path / "some.jsonl", {"image": "images/a.png", "text": "some"})

    assert ["some"] == captions(some)


def test_another_file_is_no_data_set(tmp_path: Path) -> None:
    """An archive has to be unpacked first."""
    (tmp_path / "images.zip").touch()

    assert [(str(tmp_path / "images.zip"), "neither a folder nor a .jsonl file")] == [
        (fault.path, fault.reason) for fault in faults_of(tmp_path / "images.zip")
    ]


def test_the_mark_at_the_beginning_of_a_file_is_no_part_of_its_caption(tmp_path: Path) -> None:
    """Editors on Windows leave one."""
    write_example(tmp_path / "a.png", "\ufeffa square")

    assert ["a square"] == captions(tmp_path)


def test_a_pipe_is_no_caption(tmp_path: Path) -> None:
    """Reading it would wait forever."""
    caption = write_image(tmp_path / "a.png").with_suffix(".txt")
    os.mkfifo(caption)

    assert [(str(caption), "missing caption")] == [(fault.path, fault.reason) for fault in faults_of(tmp_path)]
