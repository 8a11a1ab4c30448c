"""The stages of a worker's end, and how its run ended."""

from enum import Enum, IntEnum, auto


class Ending(Enum):
    """The ways in which a worker's run ends."""

    DONE = auto()
    ABORTED = auto()
    REPLACED = auto()
    """The program is to be restarted in place: its trainers continue."""


class Stage(IntEnum):
    """The stages on a worker's way to its end."""

    WORKING = 0
    DRAINING = 1
    RELEASING = 2
    ABORTING = 3
