"""The report on a data set that is good."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from tests.engines.datasets import read, write_example, write_image, write_lines, write_mask

pytestmark = pytest.mark.trainer


def test_a_data_set_is_reported_in_numbers(tmp_path: Path) -> None:
    """Two wide images of which one is enlarged, and a square one."""
    write_image(tmp_path / "a.png", (160, 96))
    write_image(tmp_path / "b.png", (60, 36))
    write_image(tmp_path / "c.png")
    for name, size in (("a", (160, 96)), ("b", (60, 36)), ("c", (64, 64))):
        write_mask(tmp_path / "masks" / f"{name}.png", size)
    write_lines(
        tmp_path / "data.jsonl",
        {"image": "a.png", "text": "a", "repeats": 4},
        {"image": "b.png", "text": "b"},
        {"image": "c.png", "text": "b"},
    )

    report = read(tmp_path, aspect_ratio_buckets=True, masked_loss=True).report.summary
    squares = read(tmp_path, aspect_ratio_buckets=False).report.summary

    assert {
        "images": 3,
        "samples": 6,
        "buckets": {"64x64": 1, "80x48": 2},
        "duplicates": 0,
        "enlarged": 1,
        "masks": 3,
        "captions": 2,
        "digest": report.digest,
    } == msgspec.to_builtins(report)
    assert ({"64x64": 3}, 0) == (squares.buckets, squares.masks)


def test_a_good_data_set_has_no_warnings(tmp_path: Path) -> None:
    """Nor has one of a single image, though all of its captions are the same."""
    write_example(tmp_path / "a.png", "a")
    assert [] == read(tmp_path).report.warnings()

    write_image(write_example(tmp_path / "b.png", "b"), colour="red")
    assert [] == read(tmp_path).report.warnings()


def test_what_is_seldom_meant_is_warned_of(tmp_path: Path) -> None:
    """It is no fault: the data set is read."""
    for name in "abc":
        write_example(tmp_path / f"{name}.png", size=(40, 40) if name == "b" else (64, 64))

    report = read(tmp_path).report

    assert [[str(tmp_path / "a.png"), str(tmp_path / "c.png")]] == report.duplicates
    assert [
        "images that are in the data set more than once: a.png = c.png",
        "1 of 3 images are enlarged, which blurs them",
        "all 3 captions are the same",
    ] == report.warnings()


def test_of_many_duplicates_only_some_are_named(tmp_path: Path) -> None:
    """The report holds all of them."""
    for i in range(6):
        for name in "ab":
            write_image(tmp_path / f"{name}{i}.png", (64 + i, 64)).with_suffix(".txt").write_text(f"{name}{i}")

    report = read(tmp_path).report

    assert 6 == len(report.duplicates)
    assert report.summary.duplicates == sum(len(group) - 1 for group in report.duplicates)
    names = ", ".join(f"a{i}.png = b{i}.png" for i in range(5))
    assert [f"images that are in the data set more than once: {names}, ..."] == report.warnings()


def digest(folder: Path, *lines: Mapping[str, object], masked: bool = False) -> str:
    """Return the digest of a data set of these lines."""
    return read(write_lines(folder / "list.jsonl", *lines), masked_loss=masked).report.summary.digest


def test_the_digest_knows_what_is_trained_on(tmp_path: Path) -> None:
    """Whatever files are called, and in whatever order they come."""
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "blue")):
        write_image(tmp_path / f"{name}.png", colour=colour)
    a, b, c = ({"image": f"{name}.png", "text": "a square"} for name in "abc")

    assert digest(tmp_path, a, b) == digest(tmp_path, c, a)
    different = [(a,), (a, a), (b, c), (a, {**b, "text": "a"}), (a, {**b, "repeats": 2}), ({**a, "repeats": 2}, b)]
    assert len(different) + 1 == len({digest(tmp_path, a, b), *(digest(tmp_path, *lines) for lines in different)})


def test_the_digest_knows_the_masks_that_are_used(tmp_path: Path) -> None:
    """And not those that are not."""
    write_image(tmp_path / "a.png")
    for grey in (1, 2):
        write_mask(tmp_path / f"{grey}.png", grey=grey)
    lines = [{"image": "a.png", "text": "a square", "mask": f"{grey}.png"} for grey in (1, 2)]

    assert digest(tmp_path, lines[0], masked=True) != digest(tmp_path, lines[1], masked=True)
    assert digest(tmp_path, lines[0]) == digest(tmp_path, lines[1])
