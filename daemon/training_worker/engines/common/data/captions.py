"""Captions: what a job's settings add to those of the data set."""

import re


def full_caption(caption: str, trigger_word: str, prefix: str) -> str:
    """Put the trigger word before a caption that does not hold it, and then the prefix before all."""
    trigger = trigger_word.strip()
    # As a word of its own: `art` is not in `a cart`.
    if trigger and not word(trigger).search(caption):
        caption = ", ".join(text for text in (trigger, caption.strip()) if text)
    return " ".join(text for text in (prefix.strip(), caption.strip()) if text)


def word(text: str) -> re.Pattern[str]:
    """Match a text where it is not part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
