"""How far a worker is on its way out, and how its run ended."""

from enum import Enum, IntEnum, auto


class Ending(Enum):
    """How a worker's run ended."""

    DONE = auto()
    ABORTED = auto()
    REPLACED = auto()
    """It is to be executed anew, in place: its trainers run on."""


class Stage(IntEnum):
    """How far a worker is on its way out."""

    WORKING = 0
    DRAINING = 1
    RELEASING = 2
    ABORTING = 3
