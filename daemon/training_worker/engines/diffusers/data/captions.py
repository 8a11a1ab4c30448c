"""Captions: what a job's settings add to those of the data set, and their parts, to be shuffled."""

from collections.abc import Sequence

import msgspec

from training_schemas.spec import TrainingParameters
from training_worker.engines.common.data.captions import full_caption, word


class CaptionParts(msgspec.Struct, frozen=True, kw_only=True):
    """What stands between a caption's commas: ``first`` keeps its place, ``rest`` may change order."""

    first: list[str]
    rest: list[str]


def base_caption(caption: str, settings: TrainingParameters) -> str:
    """Put the trigger word before a caption that does not hold it, and then the prefix before all."""
    return full_caption(caption, settings.trigger_word, settings.caption_prefix)


def parts(caption: str, trigger_word: str) -> CaptionParts:
    """Take a caption apart at its commas; a first part that begins with the trigger word keeps its place.

    Empty parts are dropped. Take apart what comes from the data set, and add the job's prefix after joining: it is not
    to be shuffled.
    """
    found = [part for part in (part.strip() for part in caption.split(",")) if part]
    trigger = trigger_word.strip()
    fixed = 1 if trigger and found and word(trigger).match(found[0]) else 0
    return CaptionParts(first=found[:fixed], rest=found[fixed:])


def joined(caption: CaptionParts, order: Sequence[int]) -> str:
    """Put a caption together again; ``order`` says which part of the rest comes when, each once, counted from 0."""
    return ", ".join([*caption.first, *(caption.rest[i] for i in order)])
