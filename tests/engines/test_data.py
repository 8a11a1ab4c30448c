"""The data set of the built-in trainer."""

from pathlib import Path

import pytest
from PIL import Image

from training_schemas.progress import FailureReason
from training_worker.engines.diffusers.data import Example, find_images, load_image, read_dataset
from training_worker.engines.diffusers.failures import TrainingFailure

pytestmark = pytest.mark.trainer


def write_example(folder: Path, name: str, caption: str = "a square") -> Path:
    """Write a small green image with its caption."""
    path = folder / name
    Image.new("RGB", (20, 10), "green").save(path)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def never() -> None:
    """Nobody asks to stop."""


def test_images_of_all_kinds_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Hidden files, such as those that macOS leaves on network drives, and other files are passed over."""
    names = ["a.jpg", "b.JPEG", "c.png", "d.webp"]
    for name in reversed(names):
        write_example(tmp_path, name)
    (tmp_path / "._a.jpg").write_bytes(b"")
    (tmp_path / "notes.md").write_text("", encoding="utf-8")

    assert names == [image.name for image in find_images(tmp_path)]


def test_captions_are_stripped(tmp_path: Path) -> None:
    """An editor's newline at the end of a caption is no part of it."""
    image = write_example(tmp_path, "a.png", " a square\n")

    assert [Example(image=image, caption="a square")] == read_dataset(tmp_path, [image], never)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """Somebody who fixes a data set should not have to try again for each fault."""
    images = [write_example(tmp_path, f"{name}.png") for name in "abcde"]
    images[0].write_bytes(images[0].read_bytes()[:50])
    images[1].with_suffix(".txt").unlink()
    images[2].with_suffix(".txt").write_text(" \n", encoding="utf-8")
    images[3].write_text("no image", encoding="utf-8")
    images[3].with_suffix(".txt").write_bytes(b"\xff")

    with pytest.raises(TrainingFailure) as raised:
        read_dataset(tmp_path, images, never)

    expected = [
        (images[0], "unreadable image"),
        (images[1].with_suffix(".txt"), "missing caption"),
        (images[2].with_suffix(".txt"), "empty caption"),
        (images[3], "unreadable image"),
        (images[3].with_suffix(".txt"), "unreadable caption"),
    ]
    assert [(str(path), what) for path, what in expected] == [
        (fault.path, fault.reason.partition(":")[0]) for fault in raised.value.faults
    ]
    assert FailureReason.DATASET_INVALID == raised.value.reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", FailureReason.DATASET_MISSING),
        ("file.txt", FailureReason.DATASET_INVALID),
        ("empty", FailureReason.DATASET_INVALID),
    ],
)
def test_a_folder_without_images_is_refused_by_name(tmp_path: Path, name: str, reason: FailureReason) -> None:
    """The message says which path was tried."""
    (tmp_path / "file.txt").write_text("", encoding="utf-8")
    (tmp_path / "empty").mkdir()

    with pytest.raises(TrainingFailure, match=name) as raised:
        find_images(tmp_path / name)

    assert reason == raised.value.reason


def test_images_become_squares_around_their_middle(tmp_path: Path) -> None:
    """The sides of a wide image are cut off, its height is scaled."""
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")

    square = load_image(tmp_path / "wide.png", 40)

    assert (40, 40) == square.size
    assert (0, 0, 255) == square.getpixel((20, 20))


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    """Whatever colour lies hidden in them."""
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "clear.png")

    assert (255, 255, 255) == load_image(tmp_path / "clear.png", 10).getpixel((5, 5))


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    """A camera held on its side notes that in the file and leaves the pixels lying."""
    image = Image.new("RGB", (10, 10), "red")
    image.paste("blue", (0, 0, 10, 5))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "photo.png", exif=exif)

    assert (0, 0, 255) == load_image(tmp_path / "photo.png", 10).getpixel((5, 8))
