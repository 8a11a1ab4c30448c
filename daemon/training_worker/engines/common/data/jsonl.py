"""A data set in a ``.jsonl`` file: one JSON object a line, an image and its caption each."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..protocol.failures import Fault
from .entries import Entry, path_inside


@dataclass(frozen=True)
class Line:
    """One line: the image's path is ``image`` or ``file_name``, its caption ``text`` or ``caption``.

    ``among`` is added to the message about a name that is missing.
    """

    image: str | None = None
    file_name: str | None = None
    text: str | None = None
    caption: str | None = None
    mask: str | None = None
    repeats: int = 1
    among: str = ""


ParseLine: TypeAlias = Callable[[bytes], Line]
"""Parses a line; raises `ValueError` or `RecursionError` where it is none. What else is in it is passed over."""


def read_lines(path: Path, parse: ParseLine) -> list[Entry | Fault]:
    """Read a file of lines; each becomes an entry or a fault, empty ones neither. Paths are relative to its folder."""
    lines = enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1)
    return [_read_line(line, parse, path.parent, f"{path}:{number}") for number, line in lines if line.strip()]


def _read_line(data: bytes, parse: ParseLine, folder: Path, where: str) -> Entry | Fault:
    try:
        line = parse(data)
        name, caption = _first(line.image, line.file_name), _first(line.text, line.caption)
        if name is None:
            return Fault(path=where, reason=f"no image: none of image, file_name{line.among}")
        image = path_inside(folder, name)
    except (ValueError, RecursionError) as error:
        return Fault(path=where, reason=str(error))
    missing = Fault(path=where, reason=f"missing caption: none of text, caption{line.among}")
    return Entry(
        image=image,
        caption=missing if caption is None else caption.strip(),
        caption_at=where,
        mask=None if line.mask is None else _mask(folder, line.mask, where),
        repeats=line.repeats,
    )


def _first(*texts: str | None) -> str | None:
    return next((text for text in texts if text is not None), None)


def _mask(folder: Path, name: str, where: str) -> Path | Fault:
    try:
        return path_inside(folder, name)
    except ValueError as error:
        return Fault(path=where, reason=f"unusable mask: {error}")
