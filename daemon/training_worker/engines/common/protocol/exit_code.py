"""How the program ends: its last record in short."""

from enum import IntEnum


class ExitCode(IntEnum):
    """With a result, a `FailedRecord`, or a `StoppedRecord`. 2 is argparse's."""

    DONE = 0
    FAILED = 1
    STOPPED = 3
