"""What a job's settings do to captions."""

import pytest
from tests.engines.datasets import settings

from training_worker.engines.diffusers.data.captions import base_caption, joined, parts

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("trigger", "prefix", "caption", "expected"),
    [
        ("", "", " a robot ", "a robot"),
        ("rbt", "", "a robot", "rbt, a robot"),
        ("rbt", "", "a rbt of iron", "a rbt of iron"),
        ("art", "", "a cart", "art, a cart"),
        ("<rbt>", "", "a <rbt> of iron", "a <rbt> of iron"),
        ("r.t", "", "a rbt of iron", "r.t, a rbt of iron"),
        ("rbt", "", "", "rbt"),
        ("", "A drawing of", "a robot", "A drawing of a robot"),
        ("", "A drawing of ", "a robot", "A drawing of a robot"),
        ("", "A drawing", "", "A drawing"),
        ("rbt", "A drawing of", "a robot", "A drawing of rbt, a robot"),
        (" ", " ", "", ""),
    ],
)
def test_the_trigger_word_and_the_prefix_are_put_before_captions(
    trigger: str, prefix: str, caption: str, expected: str
) -> None:
    """The word only where it is missing, as a word of its own; the prefix always, and before it."""
    assert expected == base_caption(caption, settings(trigger_word=trigger, caption_prefix=prefix))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a robot, of iron, at night", "at night, a robot, of iron"),
        ("rbt, a robot, of iron, at night", "rbt, at night, a robot, of iron"),
        ("rbt standing, a robot, of iron, at night", "rbt standing, at night, a robot, of iron"),
        ("rbts, of iron, at night", "at night, rbts, of iron"),
        ("a robot,, rbt , at night,", "at night, a robot, rbt"),
    ],
)
def test_parts_change_order_but_for_a_leading_trigger_word(caption: str, expected: str) -> None:
    """The word is what the adapter is called by, and models read what comes first as the most important."""
    assert expected == joined(parts(caption, "rbt"), [2, 0, 1])


def test_without_a_trigger_word_every_part_may_change_places() -> None:
    """An empty word begins no caption."""
    assert ([], ["a", "b"]) == (parts("a, b", "").first, parts("a, b", "").rest)


def test_an_empty_caption_has_no_parts() -> None:
    """And none to put in order."""
    assert not joined(parts(" , ", "rbt"), [])
