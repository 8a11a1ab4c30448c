"""Data sets in a file of lines."""

from pathlib import Path
from typing import Any

import pytest
from tests.engines.datasets import faults_of, read, write_image, write_lines

pytestmark = pytest.mark.trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images, one of them deeper."""
    folder = tmp_path / "dataset"
    write_image(folder / "a.png")
    write_image(folder / "more" / "b.png")
    return folder


def test_examples_come_in_the_order_of_the_lines(folder: Path) -> None:
    """With either of the usual keys, what only others know of is passed over."""
    write_lines(
        folder / "data.jsonl",
        {"image": "more/b.png", "text": " b ", "repeats": 3, "source": {"url": "?"}},
        {"file_name": "a.png", "caption": "a", "width": "?"},
    )

    assert [(folder / "more" / "b.png", "b", 3), (folder / "a.png", "a", 1)] == [
        (example.image, example.caption, example.repeats) for example in read(folder).examples
    ]


def test_empty_lines_and_the_mark_of_windows_are_no_faults(folder: Path) -> None:
    """Nor are the ends of lines there."""
    (folder / "data.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "a.png", "text": "a"}\r\n\r\n \n')

    assert ["a"] == [example.caption for example in read(folder).examples]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "truncated"),
        (b"[1]", "Expected `object`"),
        (b"\xff", "JSON is malformed"),
        (b'{"image":' + b"[" * 100_000, "recursion"),
        (b'{"image": 1, "text": "a"}', "$.image"),
        (b'{"image": "a.png", "text": ["a"]}', "$.text"),
        (b'{"image": "a.png", "text": "a", "repeats": 0}', "$.repeats"),
        (b'{"image": "a.png", "text": "a", "repeats": 1.5}', "$.repeats"),
        (b'{"picture": "a.png", "text": "a"}', "no image: none of image, file_name among the keys picture, text"),
        (b'{"image": "a.png", "words": "a"}', "missing caption: none of text, caption among the keys image, words"),
        (b"{}", "no image: none of image, file_name among the keys (none)"),
        (b'{"image": "a.png", "text": " "}', "empty caption"),
    ],
)
def test_bad_lines_are_reported_by_their_number(folder: Path, line: bytes, reason: str) -> None:
    """All of them, as an editor counts them."""
    lines = folder / "data.jsonl"
    lines.write_bytes(b'{"image": "a.png", "text": "a"}\n\n' + line + b"\n" + line)

    faults = faults_of(folder)

    assert [f"{lines}:3", f"{lines}:4"] == [fault.path for fault in faults]
    assert reason in faults[0].reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/hostname", "is not a path below the data set"),
        ("../outside.png", "is not a path below the data set"),
        ("more/../a.png", "is not a path below the data set"),
        ("link.png", "leads out of the data set"),
        ("link/outside.png", "leads out of the data set"),
        ("circle", "cannot be followed"),
        ("a\x00.png", "null"),
    ],
)
@pytest.mark.parametrize("key", ["image", "mask"])
def test_nothing_outside_the_data_set_is_read(folder: Path, name: str, reason: str, key: str) -> None:
    """A data set may come from a stranger, who would see in the result what else is on the host."""
    write_image(folder.parent / "outside.png")
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "link").symlink_to(folder.parent)
    (folder / "circle").symlink_to("circle")
    line: dict[str, Any] = {"image": "a.png", "text": "a", key: name}
    lines = write_lines(folder / "data.jsonl", line)

    (fault,) = faults_of(folder, masked_loss=True) if key == "mask" else faults_of(folder)

    assert f"{lines}:1" == fault.path
    assert reason in fault.reason


def test_links_may_lead_to_other_places_in_the_data_set(folder: Path) -> None:
    """Also where the data set itself is reached by a link."""
    (folder / "link.png").symlink_to("more/b.png")
    write_lines(folder / "data.jsonl", {"image": "link.png", "text": "a"})
    (folder.parent / "linked").symlink_to(folder)

    assert ["link.png"] == [example.image.name for example in read(folder.parent / "linked").examples]


def test_masks_are_not_looked_at_where_none_are_used(folder: Path) -> None:
    """A data set with masks can be trained without them."""
    write_lines(folder / "data.jsonl", {"image": "a.png", "text": "a", "mask": "/nowhere"})

    assert [None] == [example.mask for example in read(folder).examples]


def test_an_image_that_is_not_there_is_reported_by_its_path(folder: Path) -> None:
    """Not by that of the list."""
    write_lines(folder / "data.jsonl", {"image": "c.png", "text": "c"})

    assert [(str(folder / "c.png"), "unreadable image: no such file")] == [
        (fault.path, fault.reason) for fault in faults_of(folder)
    ]
