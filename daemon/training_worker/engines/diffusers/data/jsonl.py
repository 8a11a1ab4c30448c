"""One line of a data set's ``.jsonl`` file, as msgspec reads it."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from training_worker.engines.common.data.jsonl import Line


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a line; what else is there is meant for others, and passed over."""

    image: str | None = None
    file_name: str | None = None
    text: str | None = None
    caption: str | None = None
    mask: str | None = None
    repeats: Annotated[int, Meta(ge=1)] = 1


def parse_line(data: bytes) -> Line:
    """Parse a line.

    Raises:
        ValueError: It is none.
        RecursionError: It is too deep.
    """
    decoded = msgspec.json.decode(data, type=dict[str, Any])
    fields = msgspec.convert(decoded, Fields)
    return Line(**msgspec.structs.asdict(fields), among=f" among the keys {', '.join(decoded) or '(none)'}")
