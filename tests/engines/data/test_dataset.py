"""The data set of the built-in trainer: what is checked before anything slow happens."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.engines.datasets import (
    faults_of,
    never,
    read,
    settings,
    write_example,
    write_image,
    write_lines,
    write_mask,
)

from training_schemas.progress import FailureReason
from training_worker.engines.common.data.examples import Example
from training_worker.engines.common.protocol.failures import TrainingFailure, TrainingStopped
from training_worker.engines.diffusers.data.dataset import read_dataset

pytestmark = pytest.mark.trainer


def test_an_example_is_all_that_training_has_to_know_of_an_image(tmp_path: Path) -> None:
    """With its caption as the data set has it, but for an editor's newline at the end."""
    image = write_example(tmp_path / "a.png", " a square\n", (80, 96))

    assert [
        Example(
            image=image,
            caption="a square",
            mask=None,
            repeats=1,
            width=80,
            height=96,
            bucket=(64, 64),
            mask_digest=None,
            digest=hashlib.sha256(image.read_bytes()).hexdigest(),
        )
    ] == read(tmp_path, trigger_word="rbt").examples


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """Somebody who fixes a data set should not have to try again for each fault."""
    images = [write_example(tmp_path / f"{name}.png") for name in "abcdef"]
    images[0].write_bytes(images[0].read_bytes()[:50])
    images[1].with_suffix(".txt").unlink()
    images[2].with_suffix(".txt").write_text(" \n", encoding="utf-8")
    images[3].write_text("no image", encoding="utf-8")
    images[3].with_suffix(".txt").write_bytes(b"\xff")
    write_image(images[4], (31, 64))

    expected = [
        (images[0], "unreadable image"),
        (images[1].with_suffix(".txt"), "missing caption"),
        (images[2].with_suffix(".txt"), "empty caption"),
        (images[3], "unreadable image"),
        (images[3].with_suffix(".txt"), "unreadable caption"),
        (images[4], "too small"),
    ]
    assert [(str(path), what) for path, what in expected] == [
        (fault.path, fault.reason.partition(":")[0]) for fault in faults_of(tmp_path)
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", FailureReason.DATASET_MISSING),
        ("file.txt", FailureReason.DATASET_INVALID),
        ("empty", FailureReason.DATASET_INVALID),
        ("empty.jsonl", FailureReason.DATASET_INVALID),
    ],
)
def test_a_data_set_without_images_is_refused_by_name(tmp_path: Path, name: str, reason: FailureReason) -> None:
    """The message has the path that was tried."""
    (tmp_path / "file.txt").write_text("", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()

    with pytest.raises(TrainingFailure, match=name) as raised:
        read(tmp_path / name)

    assert reason == raised.value.reason


def test_a_data_set_that_may_not_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner can fix that; the worker is not root, as whoever runs the tests may be."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)

    assert [(str(tmp_path), "Permission denied")] == [(fault.path, fault.reason) for fault in faults_of(tmp_path)]


@pytest.mark.parametrize("changes", [{"trigger_word": "rbt"}, {"caption_prefix": "A drawing"}])
def test_an_empty_caption_is_good_where_the_settings_add_something(tmp_path: Path, changes: dict[str, Any]) -> None:
    """That is how a single thing is taught without describing it; a file that is missing was forgotten."""
    write_example(tmp_path / "a.png", "")
    missing = write_image(tmp_path / "b.png").with_suffix(".txt")

    assert [(str(missing), "missing caption")] == [
        (fault.path, fault.reason) for fault in faults_of(tmp_path, **changes)
    ]
    missing.touch()
    assert ["", ""] == [example.caption for example in read(tmp_path, **changes).examples]


@pytest.mark.parametrize(
    ("size", "buckets", "good"),
    [
        ((32, 32), False, True),
        ((31, 200), False, False),
        ((40, 24), True, True),
        ((40, 23), True, False),
        ((40, 24), False, False),
    ],
)
def test_images_are_enlarged_twice_at_most(tmp_path: Path, size: tuple[int, int], buckets: bool, good: bool) -> None:
    """To cover their own bucket, which for 5:3 at 64 pixels is 80x48."""
    image = write_example(tmp_path / "a.png", size=size)

    if good:
        assert read(tmp_path, aspect_ratio_buckets=buckets).examples
    else:
        fault = faults_of(tmp_path, aspect_ratio_buckets=buckets)[0]
        assert (str(image), f"too small: {size[0]}x{size[1]} pixels") == (fault.path, fault.reason.partition(" do")[0])


def test_masks_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """Named after the images, and no images themselves."""
    write_example(tmp_path / "a.jpg")
    mask = write_mask(tmp_path / "masks" / "a.png")

    assert [mask] == [example.mask for example in read(tmp_path, masked_loss=True).examples]
    assert [None] == [example.mask for example in read(tmp_path, masked_loss=False).examples]


def test_a_mask_that_is_named_comes_before_one_of_the_images_name(tmp_path: Path) -> None:
    """Other lines of the same data set may do without a name."""
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "sub" / "b.png")
    masks = [write_mask(tmp_path / "other" / "mask.png"), write_mask(tmp_path / "masks" / "b.png")]
    write_mask(tmp_path / "masks" / "a.png", grey=0)
    lines = write_lines(
        tmp_path / "list.jsonl",
        {"image": "a.png", "text": "a", "mask": "other/mask.png"},
        {"image": "sub/b.png", "text": "b"},
    )

    assert masks == [example.mask for example in read(lines, masked_loss=True).examples]


def test_all_faults_of_masks_are_reported_at_once(tmp_path: Path) -> None:
    """As those of images, and along with them."""
    for name in "abcde":
        write_example(tmp_path / f"{name}.png")
    masks = [tmp_path / "masks" / f"{name}.png" for name in "abcde"]
    write_mask(masks[1]).write_text("no image", encoding="utf-8")
    write_mask(masks[2], (64, 60))
    write_mask(masks[3], grey=0)
    write_mask(masks[4])
    (tmp_path / "e.png").write_text("no image", encoding="utf-8")

    faults = faults_of(tmp_path, masked_loss=True)

    assert [str(path) for path in (*masks[:4], tmp_path / "e.png")] == [fault.path for fault in faults]
    reasons = [
        "unusable mask: no such file",
        "unusable mask: cannot identify",
        "unusable mask: 64x60 pixels, but its image has 64x64",
        "unusable mask: all black",
        "unreadable image",
    ]
    assert all(fault.reason.startswith(reason) for fault, reason in zip(faults, reasons, strict=True))
    write_image(tmp_path / "e.png")
    assert 5 == len(read(tmp_path).examples)


def test_the_total_is_reported_before_the_first_image_is_read(tmp_path: Path) -> None:
    """Whoever watches sees for how many images the run may seem to stand still."""
    for name in "ab":
        write_example(tmp_path / f"{name}.png")
    seen: list[object] = []

    read_dataset(tmp_path, settings(), 16, tmp_path, lambda: seen.append("check"), seen.append)

    assert [2, "check", "check"] == seen


def test_reading_stops_between_images(tmp_path: Path) -> None:
    """Large data sets take minutes."""
    for name in "ab":
        write_example(tmp_path / f"{name}.png")

    def stop() -> None:
        raise TrainingStopped("signal")

    with pytest.raises(TrainingStopped):
        read_dataset(tmp_path, settings(), 16, tmp_path, stop, lambda _: None)


def test_nothing_is_written_where_nothing_is_unpacked(tmp_path: Path) -> None:
    """Images that are files already stay where they are."""
    write_example(tmp_path / "a" / "a.png")

    read_dataset(tmp_path / "a", settings(), 16, tmp_path / "extracted", never, lambda _: None)

    assert not (tmp_path / "extracted").exists()
