"""A data set in a ``.jsonl`` file: one JSON object a line, an image and its caption each."""

import codecs
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from training_worker.engines.common.data.entries import Entry, path_inside
from training_worker.engines.common.protocol.failures import Fault


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line: the image's path is ``image`` or ``file_name``, its caption ``text`` or ``caption``.

    What else is there is meant for others, and passed over.
    """

    image: str | None = None
    file_name: str | None = None
    text: str | None = None
    caption: str | None = None
    mask: str | None = None
    repeats: Annotated[int, Meta(ge=1)] = 1


def read_lines(path: Path) -> list[Entry | Fault]:
    """Read a file of lines; each becomes an entry or a fault, empty ones neither. Paths are relative to its folder."""
    lines = enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1)
    return [_read_line(line, path.parent, f"{path}:{number}") for number, line in lines if line.strip()]


def _read_line(data: bytes, folder: Path, where: str) -> Entry | Fault:
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        line = msgspec.convert(fields, Line)
        name, caption = _first(line.image, line.file_name), _first(line.text, line.caption)
        if name is None:
            return _missing(where, "no image", "image, file_name", fields)
        image = path_inside(folder, name)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        return Fault(path=where, reason=str(error))
    return Entry(
        image=image,
        caption=_missing(where, "missing caption", "text, caption", fields) if caption is None else caption.strip(),
        caption_at=where,
        mask=None if line.mask is None else _mask(folder, line.mask, where),
        repeats=line.repeats,
    )


def _first(*texts: str | None) -> str | None:
    return next((text for text in texts if text is not None), None)


def _missing(where: str, what: str, wanted: str, fields: dict[str, Any]) -> Fault:
    return Fault(path=where, reason=f"{what}: none of {wanted} among the keys {', '.join(fields) or '(none)'}")


def _mask(folder: Path, name: str, where: str) -> Path | Fault:
    try:
        return path_inside(folder, name)
    except ValueError as error:
        return Fault(path=where, reason=f"unusable mask: {error}")
