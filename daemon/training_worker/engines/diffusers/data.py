"""The data set: a folder of images, each with its caption in a text file of the same name."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from PIL import Image, ImageOps

from training_schemas.progress import FailureReason, Fault
from training_worker.engines.diffusers.failures import TrainingFailure

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """An image file and what it shows, in words."""

    image: Path
    caption: str


def find_images(folder: Path) -> list[Path]:
    """List the image files of a folder in the order of their names, passing over hidden ones.

    Raises:
        TrainingFailure: The folder is missing, is no folder, cannot be read or holds no image.
    """
    if not folder.exists():
        raise TrainingFailure(FailureReason.DATASET_MISSING, f"cannot read data set {folder}: no such folder")
    if not folder.is_dir():
        raise _invalid(folder, [Fault(path=str(folder), reason="not a folder")])
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise _invalid(folder, [Fault(path=str(folder), reason=str(error.strerror))]) from error
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
    if not images:
        raise _invalid(folder, [Fault(path=str(folder), reason=f"no images ({', '.join(sorted(IMAGE_SUFFIXES))})")])
    return images


def read_dataset(folder: Path, images: list[Path], check_stop: Callable[[], None]) -> list[Example]:
    """Decode every image and read every caption, before hours are spent on them.

    Raises:
        TrainingFailure: Images or captions are broken, missing or empty; it names them all.
    """
    examples, faults = [], []
    for image in images:
        check_stop()
        caption, found = _check_example(image)
        faults += found
        examples.append(Example(image=image, caption=caption))
    if faults:
        raise _invalid(folder, faults)
    return examples


def load_image(path: Path, resolution: int) -> Image.Image:
    """Decode an image, upright and opaque, scaled and cropped around its middle to a square.

    The square has ``resolution`` pixels a side; the shorter side is scaled to it. Transparent parts become white.
    """
    return ImageOps.fit(_decode(path), (resolution, resolution), Image.Resampling.LANCZOS)


def _decode(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_example(image: Path) -> tuple[str, list[Fault]]:
    faults = []
    try:
        with Image.open(image) as file:
            file.verify()  # checksums, which decoding passes over
        _decode(image)
    except Exception as error:  # noqa: BLE001 # Pillow's decoders raise what they like on broken files
        faults.append(Fault(path=str(image), reason=f"unreadable image: {error}"))
    caption_path = image.with_suffix(".txt")
    try:
        caption = caption_path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "", [*faults, Fault(path=str(caption_path), reason="missing caption")]
    except (OSError, UnicodeDecodeError) as error:
        return "", [*faults, Fault(path=str(caption_path), reason=f"unreadable caption: {error}")]
    if not caption:
        faults.append(Fault(path=str(caption_path), reason="empty caption"))
    return caption, faults


def _invalid(folder: Path, faults: list[Fault]) -> TrainingFailure:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = f"cannot use data set {folder}: {first.path}: {first.reason}{more}"
    return TrainingFailure(FailureReason.DATASET_INVALID, message, faults)
