"""The keys of what is cached: a digest of all that a value depends on, so that a change of any makes another key."""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

# Part of every key: one more where the same parts stand for another value, which forgets all that was cached before.
FORMAT = 1

KeyPart: TypeAlias = "str | int | float | bool | Sequence[KeyPart] | None"


def content_key(kind: str, /, **parts: KeyPart) -> str:
    """Name a value by its kind and all that it is made of: a SHA-256 in hexadecimal.

    The order in which the parts are given makes no difference; their types do: 1, 1.0, "1" and True are four values.
    """
    return hashlib.sha256(msgspec.json.encode([FORMAT, kind, parts], order="sorted")).hexdigest()
