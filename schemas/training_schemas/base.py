"""The base of all messages: a frozen struct, keyword-only in Python, camelCase on the wire."""

from typing import Annotated

import msgspec
from msgspec import Meta

# A job's id names queues, routing keys and folders. No dot: it separates the words of a routing key.
JobId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")]

Text = Annotated[str, Meta(min_length=1, max_length=4096)]


class Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A struct that is read tolerantly: fields of a later minor version are ignored."""


class StrictWire(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A struct that is read strictly: the sender gets a fault for every field that nobody would read."""
