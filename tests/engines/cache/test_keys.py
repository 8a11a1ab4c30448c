"""The keys of what is cached."""

import string
from typing import Any

import pytest

from training_worker.engines.diffusers.cache import keys
from training_worker.engines.diffusers.cache.keys import content_key

pytestmark = pytest.mark.trainer


def test_a_key_is_a_sha256_in_hexadecimal() -> None:
    """It names a file."""
    key = content_key("text", caption="a robot", lengths=[77, 512], trigger=None)

    assert 64 == len(key)
    assert set(key) <= set(string.hexdigits.lower())


def test_the_order_of_the_parts_makes_no_difference() -> None:
    """They have names."""
    assert content_key("text", caption="a robot", length=77) == content_key("text", length=77, caption="a robot")


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("image", {"x": 1}),
        ("text", {"y": 1}),
        ("text", {"x": 2}),
        ("text", {"x": 1.0}),
        ("text", {"x": "1"}),
        ("text", {"x": True}),
        ("text", {"x": None}),
        ("text", {"x": [1]}),
        ("text", {"x": 1, "kind": "text"}),
        ("text", {}),
    ],
)
def test_another_kind_or_part_makes_another_key(kind: str, parts: dict[str, Any]) -> None:
    """So does a part of another type, or one more of them."""
    assert content_key("text", x=1) != content_key(kind, **parts)


def test_another_format_forgets_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same caption may be encoded to something else by a later version."""
    before = content_key("text", caption="a robot")
    monkeypatch.setattr(keys, "FORMAT", keys.FORMAT + 1)

    assert before != content_key("text", caption="a robot")
